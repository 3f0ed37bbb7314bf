"""Stage 4: pose-image-pose alone, on the finished map, so that the encoder can tell the poses of new particles.

Stage 1's encoder knows stage 1's map, in which views may have stood in wrong places that later stages put right.
"""

from dataclasses import replace

import torch
from torch import Tensor

from ace_em.data.preprocess import working_set
from ace_em.data.split import subset
from ace_em.inference.confidence import Usual
from ace_em.inference.predictor import Predictor
from ace_em.refinement.half_sets import HalfSetState, change_box
from ace_em.refinement.noise_scale import Calibration
from ace_em.run import log as run_log
from ace_em.run.context import Job, poses_tried
from ace_em.training.fabric import make_fabric
from ace_em.training.loop import Hooks, Progress


def encoder_of(networks: dict[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's weights among those of the autoencoder."""
    return {name.removeprefix("encoder."): value for name, value in networks.items() if name.startswith("encoder.")}


def untaught(state: HalfSetState, networks: dict[str, Tensor], job: Job) -> Predictor:
    """The final map with the encoder as stage 1 left it."""
    plan, config, box = job.plan, job.config, job.plan.working_box
    return Predictor(
        box=plan.particles.box,
        pixel_size_angstrom=plan.particles.pixel_size_angstrom,
        diameter_angstrom=plan.diameter_angstrom,
        look=plan.look,
        noise=state.calibration.at_box(box).noise,
        volume=change_box(state.halves.combined, box),
        encoder=encoder_of(networks),
        shift_sd_px=max(state.pose.shift_px.std().item() * box / plan.boxes[-1], 0.1),
        symmetry=config.symmetry,
        flip_hand=config.flip_hand,
        ace=config.ace,
        config=config.predict,
        usual=Usual(0.0, 1.0),
        poses_tried=float(poses_tried(plan, config)),
        converged=False,
    )


def teach(state: HalfSetState, networks: dict[str, Tensor], job: Job) -> Predictor:
    """Stage 4: the encoder learns the final map, from the weights of stage 1's ``networks`` on."""
    plan, config, journal, box = job.plan, job.config, job.journal, job.plan.working_box
    done = journal.result(Predictor, "encoder")
    if done is not None:
        return done
    rows = subset(len(plan.particles), config.predict.images, config.seed)
    with job.reporter.task(f"reading images at {box} px", len(rows)) as task:
        images = working_set(plan.particles, plan.look, box, rows=rows, on_block=task.update)
    predictor = untaught(state, networks, job)
    Calibration(predictor.noise, torch.ones(len(rows))).apply_(images)
    lesson = replace(
        config.ace,
        steps=config.predict.steps,
        lr_encoder=config.predict.lr,
        pip=True,
        pip_schedule="succession",
        pip_warmup_steps=0,
        label_steps=0,
        symmetric_loss="none",
        schedule="cosine",
    )
    with job.reporter.task("teaching the encoder the map", lesson.steps) as task:

        def on_step(progress: Progress) -> None:
            if progress.step % 10 == 0 or progress.step == lesson.steps:
                task.update(progress.step, run_log.lesson_step(progress, lesson.steps, job.reporter))

        hooks = Hooks(on_step, lambda safe, model: journal.at("encoder", {"training": safe}), job.reporter.say)
        begun = journal.safe_point("encoder")
        fabric = make_fabric(plan.device, config)
        taught = predictor.taught(images, lesson, fabric, config.seed, hooks, begun and begun["training"])
    journal.finish("encoder", taught)
    return taught
