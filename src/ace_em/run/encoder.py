"""Stage 4: the encoder trained on the final map, kept for ``ace-em predict``."""

from dataclasses import replace

from torch import Tensor

from ace_em.data.preprocess import read_stack
from ace_em.data.split import subset
from ace_em.data.survey import noise_groups, pooled
from ace_em.inference.confidence import ResidualBaseline
from ace_em.inference.predictor import Predictor
from ace_em.refinement.half_sets import HalfSetState, change_box
from ace_em.run import log
from ace_em.run.context import RunContext
from ace_em.training.encoder_on_map import train_encoder_on_map
from ace_em.training.fabric import make_fabric


def new_predictor(state: HalfSetState, networks: dict[str, Tensor], context: RunContext) -> Predictor:
    """A predictor with the final map and the encoder of stage 1."""
    plan, config, box = context.plan, context.config, context.plan.working_box
    group = noise_groups(plan.particles)
    look = pooled(replace(plan.look, noise=state.noise), group)
    return Predictor(
        box=plan.particles.box,
        pixel_size_angstrom=plan.particles.pixel_size_angstrom,
        diameter_angstrom=plan.diameter_angstrom,
        look=look,
        volume=change_box(state.halves.combined, box),
        encoder={n.removeprefix("encoder."): value for n, value in networks.items() if n.startswith("encoder.")},
        shift_sd_px=max(state.pose.shift_px.std().item() * box / plan.boxes[-1], 0.1),
        symmetry=config.symmetry,
        flip_hand=config.flip_hand,
        ace=config.ace,
        config=config.predict,
        baseline=ResidualBaseline(0.0, 1.0),
        poses_tried=float(plan.poses_tried(config)),
        converged=False,
    )


def train_encoder(state: HalfSetState, networks: dict[str, Tensor], context: RunContext) -> Predictor:
    """Train the encoder on the final map, starting from the weights of stage 1."""
    plan, config, checkpoint, name = context.plan, context.config, context.checkpoint, "encoder training"
    done = checkpoint.load_done(Predictor, name)
    if done is not None:
        return done
    rows = subset(len(plan.particles), config.predict.images, config.seed)
    predictor = new_predictor(state, networks, context)
    with context.reporter.task(f"reading images at {plan.working_box} px", len(rows)) as task:
        stack = read_stack(plan.particles, predictor.look, plan.working_box, rows=rows, on_block=task.update)
    saved = checkpoint.load_progress(name)
    training = train_encoder_on_map(
        predictor.model(stack.half_plane),
        stack,
        predictor.diameter_px,
        config.predict,
        make_fabric(plan.device, config),
        config.seed,
        saved and saved["training"],
    )
    with context.reporter.task("training the encoder on the final map", config.predict.steps) as task:
        for progress in training:
            for note in progress.notes:
                context.reporter.say(note)
            if progress.step % 10 == 0 or progress.step == config.predict.steps:
                task.update(progress.step, log.encoder_step(progress, config.predict.steps, context.reporter))
            if progress.saved:
                checkpoint.save_progress(name, {"training": training.saved})
    trained = replace(predictor, encoder=training.model.cpu().encoder.state_dict())
    checkpoint.save_done(name, trained)
    return trained
