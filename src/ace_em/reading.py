"""The images of a run at a working box: in memory, or in a scratch file when they are more than memory may hold."""

from pathlib import Path

from ace_em.config import RunConfig
from ace_em.data.preprocess import scratch_set, working_set
from ace_em.data.working_set import Images
from ace_em.plan import Plan
from ace_em.progress import Reporter


def read_images(plan: Plan, box: int, config: RunConfig, out: Path, reporter: Reporter, keep_optics: bool = False) -> Images:
    """All particles, normalised and whitened; ``out`` is the folder of the run, which need not be there yet."""
    with reporter.task(f"reading images at {box} px", len(plan.particles)) as task:
        if plan.fits(box):
            return working_set(plan.particles, plan.look, box, on_block=task.update, keep_optics=keep_optics)
        folder = Path(config.scratch) if config.scratch else next(p for p in (out, *out.absolute().parents) if p.is_dir())
        return scratch_set(plan.particles, plan.look, box, folder, task.update, keep_optics)
