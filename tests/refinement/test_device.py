"""Search, refinement, defocus and maps with the reference on another device: same results, returned on the CPU.

The second device is emulated: its tensors are on the CPU, but it raises the errors of a GPU for operations on
tensors of two devices, and for access by NumPy to tensors that are not on the CPU.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from ace_em.config import AceConfig, FourierEncoderConfig, RefineConfig, SearchConfig, SimulationConfig
from ace_em.data.particles import Particles
from ace_em.io.mrc import read_volume
from ace_em.maths import blocks
from ace_em.maths.slices import Insertion
from ace_em.physics.ctf import CTFParameters
from ace_em.refinement import backprojection
from ace_em.refinement.abinitio import AbInitioSetup, ab_initio
from ace_em.refinement.backprojection import accumulate
from ace_em.refinement.half_sets import (
    HalfSets,
    HalfSetState,
    refine_defocus_rounds,
    refine_half_sets,
    search_half_sets,
    shared_start,
)
from ace_em.refinement.held_out import judge_held_out
from ace_em.refinement.search import SearchSpace
from ace_em.run.evaluation import bound
from ace_em.simulation.write import simulate
from ace_em.training.loop import Training
from stacks import stack_of

DEVICE = torch.device("cuda")


class Elsewhere(Tensor):
    """A tensor on the second device."""

    __torch_function__ = torch._C._disabled_torch_function_impl


_DEVICE_OF = Tensor.device.__get__  # type: ignore[attr-defined]


def _elsewhere(value: Any) -> Any:
    # a tensor already on the device is returned unchanged: a copy of a parameter would not be a parameter
    return value.as_subclass(Elsewhere) if isinstance(value, Tensor) and not isinstance(value, Elsewhere) else value


def _here(value: Any) -> Any:
    return value.as_subclass(Tensor) if isinstance(value, Tensor) else value


def _is_second(device: Any) -> bool:
    return device is not None and torch.device(device).type == DEVICE.type


class SecondDevice(TorchFunctionMode):
    """Context manager in which ``torch.device("cuda")`` is the second device; ``used`` counts the operations on it."""

    def __init__(self) -> None:
        super().__init__()
        self.used = 0

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        there = [t for t in tensors if isinstance(t, Elsewhere)]
        if func == _DEVICE_OF:
            return DEVICE if there else torch.device("cpu")
        if func == Tensor.to:
            return self._moved(args, kwargs)
        if func == Tensor.cpu:
            return _here(args[0])
        made_there = _is_second(kwargs.get("device"))
        if made_there:
            del kwargs["device"]
        if there and getattr(func, "__name__", "") in ("numpy", "__array__"):
            raise TypeError("cannot look with NumPy at a tensor that is not on the CPU")
        self._refuse_mixture(func, args, tensors, there)
        result = func(*args, **kwargs)
        if not (there or made_there):
            return result
        self.used += 1
        return pytree.tree_map(_elsewhere, result)

    @staticmethod
    def _moved(args: Any, kwargs: Any) -> Any:
        target = kwargs.pop("device", None)
        rest: list[Any] = []
        for value in args[1:]:
            if isinstance(value, Tensor):
                target = DEVICE if isinstance(value, Elsewhere) else torch.device("cpu")
                rest.append(value.dtype)
            elif isinstance(value, torch.device | str):
                target = value
            elif isinstance(value, torch.dtype):
                rest.append(value)
        moved = Tensor.to(args[0], *rest, **kwargs) if rest or kwargs else args[0]
        stays = isinstance(args[0], Elsewhere) if target is None else _is_second(target)
        return _elsewhere(moved) if stays else _here(moved)

    @staticmethod
    def _refuse_mixture(func: Callable[..., Any], args: Any, tensors: list[Tensor], there: list[Tensor]) -> None:
        if not there or func in (Tensor.copy_, torch._has_compatible_shallow_copy_type):
            return
        # indexing by a CPU tensor and combining with CPU scalars are allowed
        indexed = func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[0], Elsewhere)
        met = [a for a in args[2:] if isinstance(a, Tensor)] if indexed else tensors
        if any(not isinstance(t, Elsewhere) and t.dim() > 0 for t in met):
            raise RuntimeError(f"expected all tensors to be on the same device ({getattr(func, '__name__', func)})")


C1 = torch.eye(3)[None]
CONFIG = SearchConfig(spacing=2.5, ab_initio_rounds=2, ab_initio_images=60, max_rounds=3, first_band=4, last_band=6, held_out=20)
CPU = torch.device("cpu")


@pytest.fixture
def second() -> Iterator[SecondDevice]:
    with SecondDevice() as mode:
        yield mode


def test_the_second_device_raises_the_errors_of_a_gpu(second: SecondDevice) -> None:
    here, there = torch.arange(6.0), torch.arange(6.0, device=DEVICE)
    assert isinstance(there, Elsewhere) and there.device == DEVICE and here.device == CPU
    assert isinstance(there + 1, Elsewhere) and isinstance(there[here.long()], Elsewhere)
    assert not isinstance((there * 2).to(CPU), Elsewhere) and torch.equal(there.cpu(), here)
    for mixed in (lambda: here + there, lambda: torch.cat([here, there]), lambda: here[there.long()], lambda: there @ here):
        with pytest.raises(RuntimeError, match="same device"):
            mixed()
    with pytest.raises(TypeError):
        there.numpy()


def searched_ab_initio(p: Any, device: torch.device) -> list[torch.Tensor]:
    setup = AbInitioSetup(p.images, p.mask, SearchSpace(p.images.box, 16.0, CONFIG, C1), CONFIG, device)
    generator = torch.Generator().manual_seed(0)
    history = list(ab_initio(setup, p.volume, p.pose, torch.arange(20, 100), generator))
    last, held_out = judge_held_out(setup, history[-1], torch.arange(20), generator)
    return [last.pose.rotation, last.pose.shift_px, last.halves.combined, torch.tensor(held_out.explained)]


def half_sets(p: Any, device: torch.device) -> tuple[HalfSets, HalfSetState]:
    sets = HalfSets(p.images, torch.arange(len(p.images)) % 2 + 1, p.mask, C1, device)
    return sets, shared_start(p.images, p.volume, p.pose, 3.0)


def searched_and_refined(p: Any, device: torch.device) -> list[torch.Tensor]:
    sets, state = half_sets(p, device)
    history = [state]
    generator = torch.Generator().manual_seed(0)
    states = list(search_half_sets(sets, history, SearchSpace(p.images.box, 16.0, CONFIG, C1), generator))
    states += refine_half_sets(sets, [states[-1]], RefineConfig(max_rounds=2))
    last = states[-1]
    return [last.pose.rotation, last.pose.shift_px, last.halves.half1, last.halves.fsc, last.intensity_scale]


def defocused(p: Any, device: torch.device) -> list[torch.Tensor]:
    n, one = len(p.images), torch.ones(len(p.images))
    values = {"defocus_u_angstrom": 9000 + 10 * torch.arange(n), "defocus_v_angstrom": 9000 * one, "defocus_angle_deg": 30 * one}
    values |= {"voltage_kv": torch.where(torch.arange(n) % 3 == 0, 200.0, 300.0), "spherical_aberration_mm": 2.7 * one}
    parameters = CTFParameters(**values, amplitude_contrast=0.1 * one, phase_shift_deg=0 * one)
    stack = stack_of(p.images.half_plane, p.images.image_ft, parameters, 2.0)
    sets = HalfSets(stack, torch.arange(n) % 2 + 1, p.mask, C1, device)
    state, _ = refine_defocus_rounds(sets, shared_start(stack, p.volume, p.pose, 3.0), RefineConfig())
    return [state.defocus_offset_angstrom, state.halves.half2]


@pytest.mark.parametrize("work", [searched_ab_initio, searched_and_refined, defocused])
def test_results_are_the_same_on_another_device(
    particle: Callable[..., Any], second: SecondDevice, work: Callable[[Any, torch.device], list[torch.Tensor]]
) -> None:
    p = particle(100, noise=1.0)
    here = work(p, CPU)
    assert second.used == 0
    there = work(p, DEVICE)
    assert second.used > 100
    for one, other in zip(here, there, strict=True):
        # all results are on the CPU
        assert not isinstance(other, Elsewhere) and torch.equal(one, other)


def test_a_map_too_large_for_the_device_stays_on_the_cpu(
    particle: Callable[..., Any], second: SecondDevice, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    p = particle(40, noise=1.0)
    wanted = accumulate(p.images, p.pose).grid

    class Small(Insertion):
        def __init__(self, padded_box: int, like: torch.Tensor) -> None:
            if like.device == DEVICE:
                raise torch.OutOfMemoryError("CUDA out of memory")
            super().__init__(padded_box, like)

    monkeypatch.setattr(backprojection, "Insertion", Small)
    monkeypatch.setattr(blocks, "free_cached", lambda: None)
    assert torch.equal(accumulate(p.images, p.pose, device=DEVICE).grid, wanted)
    assert "too large for the cuda device" in caplog.text


class SetUp(Exception):
    """Raised to stop the run once the check is done."""


@pytest.mark.parametrize("decoder", ["voxel", "fouriernet"])
def test_a_model_is_on_one_device_before_fabric_sets_it_up(
    particle: Callable[..., Any], second: SecondDevice, monkeypatch: pytest.MonkeyPatch, decoder: Any
) -> None:
    """Lightning moves parameters from other devices, but with a warning."""
    generator = torch.Generator
    # the emulated device has no generator of its own
    monkeypatch.setattr(torch, "Generator", lambda device=None: generator())
    # a parameter moved in place would remain a CPU tensor
    monkeypatch.setattr(torch.__future__, "_overwrite_module_params_on_conversion", True)
    seen: list[torch.device] = []

    def setup(model: torch.nn.Module, adam: torch.optim.Optimizer) -> None:
        parts = [*model.parameters(), *model.buffers(), *(p for group in adam.param_groups for p in group["params"])]
        seen.extend(part.device for part in parts)
        raise SetUp

    fabric: Any = SimpleNamespace(device=DEVICE, global_rank=0, setup=setup)
    config = AceConfig(decoder=decoder, steps=1, fourier=FourierEncoderConfig(width=16, depth=1))
    with pytest.raises(SetUp):
        Training(particle(100, noise=1.0).images, 12.0, config, fabric, 0)
    assert len(seen) > 10 and set(seen) == {DEVICE}


def test_the_bound_of_a_simulated_set_is_the_same_on_another_device(tmp_path: Path, second: SecondDevice) -> None:
    structure = Path(__file__).parents[2] / "examples/data/5nrl_every10th_atom.npz"
    simulate(structure, tmp_path, SimulationConfig(n=100, box=24, pixel_size=22.0, resolution=40.0, snr_db=-18.0))
    truth = Particles.open(tmp_path / "truth.star")
    pose, volume = truth.poses(), torch.from_numpy(read_volume(tmp_path / "volume.mrc")[0])
    assert pose is not None
    here = bound(truth, pose, volume, list(range(100)))
    assert second.used == 0
    assert bound(truth, pose, volume, list(range(100)), DEVICE) == here
    assert second.used > 100
