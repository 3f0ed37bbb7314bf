"""The published recipes, number by number, and how the command line and a settings file take one."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from ace_em.cli import main, parser_of
from ace_em.cli.settings import arguments
from ace_em.config import RunConfig, changed, flat
from ace_em.errors import InputError
from ace_em.presets import PRESETS, differences, preset

PAPER = [name for name in PRESETS if name != "fast"]
SHARED: dict[str, Any] = {
    "encoder": "resnet",
    "hypotheses": 1,
    "alternatives": False,
    "shift_weight": 1.0,
    "last_band": 0.0,
    "march": 0.0,
    "schedule": "multistep",
    "max_shift": 0.5,
    "pip_freeze_decoder": True,
}
VOXEL: dict[str, Any] = {"decoder": "voxel", "batch": 1024, "steps": 30000, "lr_encoder": 1e-3, "voxel.lr": 1.0}
FOURIER: dict[str, Any] = {"decoder": "fouriernet", "batch": 384, "steps": 40000, "lr_encoder": 1e-4, "fouriernet.lr": 1e-4}
FOURIER_ALSO: dict[str, Any] = {"fouriernet.projector": "direct", "symmetric_loss": "half-turn", "label_steps": 0}
RECIPES: dict[str, dict[str, Any]] = {
    "paper-voxel": SHARED | VOXEL | {"symmetric_loss": "generalised", "pip": True},
    "paper-fourier": SHARED | FOURIER | FOURIER_ALSO | {"pip": True},
    "cryoai": SHARED | FOURIER | FOURIER_ALSO | {"pip": False},
    "cryoposenet": SHARED | VOXEL | {"symmetric_loss": "none", "label_steps": 0, "pip": False},
}


def test_there_is_a_preset_for_every_name_that_the_settings_allow() -> None:
    field = {f.name: f for f in dataclasses.fields(RunConfig)}["preset"]
    assert list(PRESETS) == list(field.type.__args__) == ["fast", *RECIPES]  # type: ignore[union-attr]


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_numbers(name: str) -> None:
    config = preset(name)
    assert (config.preset, config.stages, config.starts) == (name, "ace", 1)
    ace = flat(config.ace)
    assert {key: ace[key] for key in RECIPES[name]} == RECIPES[name]
    # as the paper's ranges have them
    if name == "paper-voxel":
        assert 3000 <= config.ace.label_steps <= 6000 and config.ace.label_kernel in (4, 5)
    if config.ace.pip:
        assert 0.05 <= config.ace.pip_weight <= 0.09
    # stages 2 and 3 are not the paper's and not touched
    assert config.search == RunConfig().search and config.refine == RunConfig().refine


def test_fast_is_the_default() -> None:
    assert preset("fast") == RunConfig()


def test_without_its_complementary_task_a_paper_recipe_is_its_predecessors() -> None:
    assert changed(preset("paper-fourier"), {"ace.pip": False, "preset": "cryoai"}) == preset("cryoai")


def test_changed_takes_dotted_names_and_leaves_the_rest() -> None:
    before = RunConfig()
    after = changed(before, {"ace.steps": 7, "search.top_k": 2, "seed": 5, "ace.batch": 3})
    assert (after.ace.steps, after.ace.batch, after.search.top_k, after.seed) == (7, 3, 2, 5)
    assert before == RunConfig()
    settings = flat(after)
    assert {k for k, v in flat(before).items() if settings[k] != v} == {"ace.steps", "ace.batch", "search.top_k", "seed"}
    assert changed(before, {}) == before


@pytest.mark.parametrize("name", ["ace.stepz", "stepz", "nothing.steps", "ace.", "ace.steps.more"])
def test_unknown_settings_raise(name: str) -> None:
    with pytest.raises((TypeError, AttributeError)):
        changed(RunConfig(), {name: 1})
    with pytest.raises(KeyError):
        preset("paper-nothing")


def test_flat_names_every_setting_once() -> None:
    config = preset("paper-voxel")
    settings = flat(config)
    inner: list[Any] = [config.ace.voxel, config.ace.fouriernet, config.ace.fourier]
    groups: list[Any] = [config.ace, config.search, config.refine, config.predict, *inner]
    # the groups stand for their settings
    n_grouped = sum(len(dataclasses.fields(group)) for group in groups)
    assert len(settings) == len(dataclasses.fields(config)) - len(groups) + n_grouped
    assert settings["ace.batch"] == 1024 and settings["preset"] == "paper-voxel" and settings["refine.max_rounds"] == 8
    assert changed(RunConfig(), settings) == config


@dataclasses.dataclass(frozen=True)
class Inner:
    lr: float = 0.1
    steps: int = 5


@dataclasses.dataclass(frozen=True)
class Middle:
    inner: Inner = dataclasses.field(default_factory=Inner)
    width: int = 8


@dataclasses.dataclass(frozen=True)
class Outer:
    middle: Middle = dataclasses.field(default_factory=Middle)
    seed: int = 0


def test_settings_at_any_depth() -> None:
    assert flat(Outer()) == {"middle.inner.lr": 0.1, "middle.inner.steps": 5, "middle.width": 8, "seed": 0}
    after = changed(Outer(), {"middle.inner.lr": 0.2, "seed": 1, "middle.width": 9})
    assert after == Outer(Middle(Inner(0.2, 5), 9), 1)
    assert changed(Outer(), flat(after)) == after


def test_differences_lists_what_differs_and_nothing_else() -> None:
    listed = dict(differences())
    settings = [flat(preset(name)) for name in PRESETS]
    for key in settings[0]:
        values = [s[key] for s in settings]
        differ = any(value != values[0] for value in values) and key != "preset"
        assert (key in listed) == differ, key
        assert not differ or listed[key] == values
    assert listed["ace.batch"] == [256, 1024, 384, 384, 1024]


def test_the_table_names_every_preset_and_folds_no_value(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["presets"])
    out = capsys.readouterr().out
    assert ended.value.code == 0
    assert all(name in out for name in PRESETS)
    cells = {cell.strip() for line in out.splitlines() for cell in line.replace("┃", "│").split("│")}
    for key, values in differences():
        assert {key, *map(str, values)} <= cells, key


def settings(*words: str) -> RunConfig:
    """As the command line does it."""
    config = arguments(parser_of("reconstruct"), ["p.star", "-o", "run", *words]).settings
    assert isinstance(config, RunConfig)
    return config


@pytest.mark.parametrize("name", PRESETS)
def test_an_option_gives_the_preset(name: str) -> None:
    assert settings("--preset", name) == settings(f"--preset={name}") == preset(name)


@pytest.mark.parametrize(
    "words",
    [
        ["--preset", "cryoai", "--ace.batch", "7", "--seed", "3"],
        ["--ace.batch", "7", "--seed", "3", "--preset", "cryoai"],
        ["--seed=3", "--preset=cryoai", "--ace.batch=7"],
    ],
)
def test_what_is_typed_wins_over_the_preset_in_any_order(words: list[str]) -> None:
    assert settings(*words) == changed(preset("cryoai"), {"ace.batch": 7, "seed": 3})


def test_a_value_typed_as_the_general_default_is_still_typed() -> None:
    assert settings("--preset", "cryoai", "--ace.batch", "256", "--ace.pip", "true") == changed(
        preset("cryoai"), {"ace.batch": 256, "ace.pip": True}
    )


def test_a_settings_file_may_name_a_preset(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("preset: paper-fourier\nace:\n  batch: 7\n")
    wanted = changed(preset("paper-fourier"), {"ace.batch": 7})
    assert settings("--config", str(file)) == wanted
    # the line wins over the file, before it or after it
    for line in (["--ace.batch", "9", "--config", str(file)], ["--config", str(file), "--ace.batch", "9"]):
        assert settings(*line) == changed(wanted, {"ace.batch": 9})
    # another preset on the line: its values, but for what the file sets itself
    assert settings("--config", str(file), "--preset", "cryoposenet") == changed(preset("cryoposenet"), {"ace.batch": 7})


def test_a_preset_that_would_change_nothing_is_refused(tmp_path: Path) -> None:
    """A run's config.yaml sets everything: its preset is a name that the run's page shows."""
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(dataclasses.asdict(preset("cryoai"))))
    assert settings("--config", str(file), "--preset", "cryoai") == preset("cryoai")
    with pytest.raises(InputError, match="--preset fast: .*config.yaml sets every setting of preset cryoai"):
        settings("--config", str(file), "--preset", "fast")


def test_a_file_without_a_preset_changes_the_presets_values(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("ace:\n  steps: 11\n")
    assert settings("--preset", "cryoai", "--config", str(file)) == changed(preset("cryoai"), {"ace.steps": 11})
    assert settings("--config", str(file)) == changed(RunConfig(), {"ace.steps": 11})


@pytest.mark.parametrize("name", PRESETS)
def test_the_settings_of_a_run_give_the_run_again(name: str, tmp_path: Path) -> None:
    """RUN/config.yaml holds every setting and the preset's name; a value changed in it stays changed."""
    config = changed(preset(name), {"ace.batch": 7, "ace.pip": True, "ace.milestones": (0.25, 0.5)})
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(dataclasses.asdict(config)))
    assert settings("--config", str(file)) == config


def test_presets_do_not_leak_into_the_next_line() -> None:
    assert settings("--preset", "cryoai").ace.batch == 384
    assert settings() == RunConfig()


def test_the_printed_settings_are_the_presets(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["reconstruct", "p.star", "-o", "run", "--print_config", "--preset", "paper-voxel", "--ace.steps", "5"])
    settings = yaml.safe_load(capsys.readouterr().out)
    assert ended.value.code in (0, None)
    assert (settings["stages"], settings["ace"]["batch"], settings["ace"]["steps"]) == ("ace", 1024, 5)
