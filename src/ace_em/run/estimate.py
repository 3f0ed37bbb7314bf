"""Expected memory and time of a run, and the available memory."""

import math
from pathlib import Path

import psutil

from ace_em.config import RunConfig
from ace_em.data.particle_stack import BLOCK_BYTES
from ace_em.maths.point_group import point_group


def available_bytes() -> float:
    """Memory available to this process: free in the system, and within the limit of its control group (container, batch job)."""
    return min(psutil.virtual_memory().available, _group_bytes(Path("/sys/fs/cgroup")))


def _group_bytes(root: Path) -> float:
    """Memory left under the limits of the process's control groups (version 2), which psutil ignores; infinite without."""
    try:
        groups = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return float("inf")
    inner = next((line.removeprefix("0::/") for line in groups if line.startswith("0::/")), "")
    left, group = float("inf"), root / inner
    for folder in (group, *group.parents):
        if not folder.is_relative_to(root):
            break
        try:
            limit, used = ((folder / f"memory.{name}").read_text().strip() for name in ("max", "current"))
            cached = _file_cache(folder)
        except OSError:
            continue
        if limit != "max":
            left = min(left, float(limit) - float(used) + cached)
    return max(left, 0.0)


def _file_cache(folder: Path) -> float:
    """File cache of a control group in bytes; the system frees it when memory is needed."""
    counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    return float(counts.get("inactive_file", 0)) + float(counts.get("active_file", 0))


def image_bytes(n: int, box: int) -> float:
    """Memory of ``n`` images at a working box: 8 bytes for each coefficient of a half-plane."""
    return n * math.pi / 2 * (box / 2) ** 2 * 8


def expected_memory(n: int, working_box: int, boxes: list[int], allowed: float) -> float:
    """Peak memory in bytes, which is reached in the search or in a back-projection.

    Both need the program, the particle table and the images of one box (or two blocks of them, if the images are in a scratch
    file). The search also needs blocks of scores, the back-projection the padded half-maps and their transforms. Fitted to runs
    at 32 to 256 px (``benchmarks/memory.py``, 2026-11-25).
    """

    def images(box: int) -> float:
        size = image_bytes(n, box)
        return size if size <= allowed else min(size, 2 * BLOCK_BYTES)

    searching = 1.05 * 2**30 + images(working_box)
    reconstructing = max(0.7 * 2**30 + images(box) + 10.5 * 4 * (2 * box) ** 3 for box in boxes)
    return max(searching, reconstructing) + 1200 * n


def stage_seconds(n: int, working_box: int, boxes: list[int], config: RunConfig) -> dict[str, float]:
    """Seconds of each stage on one idle server core; costs per image and coefficient fitted to the benchmarks of 2026-11-23."""
    ace, box = config.ace, working_box
    coefficients = math.pi / 2 * (box / 2) ** 2
    passes = (2 if ace.symmetric_loss != "none" else 1) + ace.pip
    resnet = 2.2e-3 * (box / 32) ** 2
    per_step = ace.batch * passes * (resnet if ace.encoder == "resnet" else (coefficients + 400) * 2.2e-7)
    if ace.decoder == "fouriernet":
        # network evaluations with gradient: the coefficients of the grid, or of every image
        lattice = ace.fouriernet.projector == "lattice"
        per_step += 3e-5 * (2 / 3 * math.pi * (box / 2) ** 3 if lattice else ace.batch * passes * coefficients)
    training = ace.steps * per_step
    judging = n * coefficients * 4.5e-6
    copies = len(point_group(config.relax_symmetry))
    # up to twice the steps, and a slice for every copy
    relaxation = 1.5 + copies / 20 if copies > 1 else 1.0
    if config.stages == "ace":
        return {"start": training, "results": 4.0 + judging}
    return {
        "start": training + coefficients * 0.05 * config.search.ab_initio_images / 800,
        "search": coefficients * 1.5e-5 * n,
        "refinement": n * sum(b**2 for b in boxes) * 1.1e-6 * relaxation,
        "confidence": judging,
        # PIP without a gradient of the decoder
        "encoder": config.predict.steps * ace.batch * (coefficients + 400) * 1.9e-7,
        "results": 4.0 + (n * coefficients * 1e-6 if config.predict.steps else 0.0),
    }
