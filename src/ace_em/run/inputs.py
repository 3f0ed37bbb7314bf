"""The images of a run at a working box: in memory, or in a scratch file when they are more than memory may hold."""

from pathlib import Path

from ace_em.config import RunConfig
from ace_em.data.preprocess import scratch_set, working_set
from ace_em.data.scratch import refuse_small_folder, scratch_bytes
from ace_em.data.working_set import Images
from ace_em.run.plan import Plan
from ace_em.run.reporter import Reporter


def read_images(plan: Plan, box: int, config: RunConfig, out: Path, reporter: Reporter, keep_optics: bool = False) -> Images:
    """All particles, normalised and whitened; ``out`` is the folder of the run, which need not be there yet."""
    with reporter.task(f"reading images at {box} px", len(plan.particles)) as task:
        if plan.fits(box):
            return working_set(plan.particles, plan.look, box, on_block=task.update, keep_optics=keep_optics)
        return scratch_set(plan.particles, plan.look, box, scratch_folder(config, out), task.update, keep_optics)


def scratch_folder(config: RunConfig, out: Path) -> Path:
    """Where images go that memory has no room for."""
    return Path(config.scratch) if config.scratch else next(p for p in (out, *out.absolute().parents) if p.is_dir())


def refuse_small_disk(plan: Plan, config: RunConfig, out: Path) -> None:
    """Find out before the run that the disk has no room for the largest of its scratch files, which are there one at a time."""
    boxes = [box for box in (plan.working_box, *plan.boxes) if not plan.fits(box)]
    if boxes:
        refuse_small_folder(scratch_folder(config, out), scratch_bytes(len(plan.particles), max(boxes)))
