"""Forty real files of other programs: each is imported, and converts both ways, or is refused in one clear line."""

from pathlib import Path

import numpy as np
import pytest

from ace_em.data.convert import convert
from ace_em.data.particles import ctf_parameters, pixel_size_of, star_poses
from ace_em.errors import InputError
from ace_em.io.cryosparc import load_fields
from ace_em.io.particle_table import image_paths, pixel_sizes, read_particle_table
from ace_em.io.star import write_star

ZOO = Path(__file__).parents[2] / "../shared/data/metadata"
pytestmark = pytest.mark.skipif(not ZOO.exists(), reason=f"{ZOO} is absent")

NO_PARTICLES = "no particles: no block has a column rlnImageName"
# number of particles, pixel size in Angstrom, whether there are poses
IMPORTED = {
    "ASPIRE-Python__sample_relion_one_image.star": (1, 1.338, True),
    "ASPIRE-Python__sample_relion_symmetry_group_D4.star": (17, 1.338, True),
    "ManifoldEM_Python__RyR1GCs_clustRem.star": (14491, 12.55, True),
    "cryodrgn__cryosparc_J2_particles_exported.cs": (22, 1.345, False),
    "cryodrgn__cryosparc_P12_J24_001_particles.cs": (2019, 2.95, True),
    "cryodrgn__relion5.star": (17, 0.89, True),
    "cryodrgn__sta_testing.star": (219, 1.96, True),
    "cryojax__ribosome_4ug0_particles.star": (5, 4.0, False),
    "em-testdata__particles_1k.star": (1000, 1.367925, False),
    "isecc__test.star": (1, 1.1, True),
    "learn_cryoem_math__cryosparc_P9_J209_000_particles.cs": (11764, 1.0273438, True),
    "relion__ap_s_c2d_relion1.x_8900.star": (8915, 3.54, True),
    "scipion-em-esrf__input_particles.star": (2021, 3.0, False),
}
REFUSED = {
    "ASPIRE-Python__rln_proj_65_shifted.star": "no CTF: missing columns rlnDefocusU, rlnDefocusV",
    "ASPIRE-Python__sample.star": "line 20: 5 values, expected 4 for the columns of data_planetary",
    "ASPIRE-Python__sample_data_model.star": NO_PARTICLES,
    "ASPIRE-Python__sample_incomplete_ctf_params.star": "no CTF: missing columns rlnVoltage",
    "CryoLike__particle_data.star": NO_PARTICLES,
    "cryodrgn__FinalRefinement-OriginalParticles-PfCRT.star": "no CTF: missing columns rlnAmplitudeContrast",
    "cryodrgn__relion31.6opticsgroups.star": "pixel sizes from 1.24 to 1.25 Angstrom, expected one for all particles",
    "cryodrgn__toy_projections_13.star": "column rlnOpticsGroup is missing in data_particles",
    "cryosparc-tools__4k_dataset.cs": "contains no particles",
    "em-testdata__micrographs_ctf.star": NO_PARTICLES,
    "odd_star/one_loop.star": "no CTF: missing columns",
    "odd_star/rln3.1_data_style.star": "no pixel size",
    "odd_star/single_line_end_of_multiblock.star": "no pixel size",
    "odd_star/single_line_middle_of_multiblock.star": "no pixel size",
}
FILES = [path.relative_to(ZOO).as_posix() for path in sorted([*ZOO.glob("*.*"), *ZOO.glob("odd_star/*")]) if path.is_file()]
# several pixel sizes are no hindrance to a conversion
CONVERTED = [*IMPORTED, "cryodrgn__relion31.6opticsgroups.star"]


def test_no_file_is_forgotten() -> None:
    assert len(FILES) == 40 and {name for name in (*IMPORTED, *REFUSED)} <= set(FILES)
    assert not set(IMPORTED) & set(REFUSED)


@pytest.mark.parametrize("name", FILES)
def test_imported_or_refused(name: str) -> None:
    if name in IMPORTED:
        table = read_particle_table(ZOO / name)
        pixel = pixel_size_of(table)
        n, want, poses = IMPORTED[name]
        pose, ctf = star_poses(table, pixel), ctf_parameters(table)
        assert len(table) == n == len(ctf.defocus_u_angstrom) and (pose is not None) == poses
        assert pixel == pytest.approx(want, rel=1e-5)
        assert ((ctf.voltage_kv >= 100) & (ctf.voltage_kv <= 300)).all()
        if pose is not None:
            assert (pose.rotation.det() - 1).abs().max() < 1e-5 and len(pose) == n
        return
    # what is in no list has no particles at all
    with pytest.raises(InputError) as caught:
        table = read_particle_table(ZOO / name)
        pixel_size_of(table)
        ctf_parameters(table)
    message = str(caught.value)
    assert message.startswith(f"{ZOO / name}: {REFUSED.get(name, NO_PARTICLES)}") and "\n" not in message


@pytest.mark.parametrize("name", CONVERTED)
def test_there_and_back(name: str, tmp_path: Path) -> None:
    source, other = ZOO / name, ".cs" if name.endswith(".star") else ".star"
    there, back = tmp_path / f"there{other}", tmp_path / f"back{source.suffix}"
    box = 0 if read_particle_table(source).has_column("rlnImageSize") else 64
    convert(source, there, say=lambda line: None, box=box)
    # a STAR file keeps the uid, by which the fields of the original come back
    convert(there, back, passthrough=[source] if source.suffix == ".cs" else [], say=lambda line: None)
    if source.suffix == ".cs":
        before, after = load_fields(source), load_fields(back)
        assert list(before) == list(after)
        assert all(before[key].dtype == after[key].dtype and before[key].tobytes() == after[key].tobytes() for key in before)
    a = read_particle_table(source)
    for b in (read_particle_table(there), read_particle_table(back)):
        for parameter, values in vars(ctf_parameters(a)).items():
            np.testing.assert_allclose(getattr(ctf_parameters(b), parameter), values, rtol=1e-6, atol=1e-5)
        assert all((x == y).all() for x, y in zip(image_paths(a), image_paths(b), strict=True))
        poses = [star_poses(table, pixel_sizes(table)[0]) for table in (a, b)]
        assert (poses[0] is None) == (poses[1] is None)
        if poses[0] is not None and poses[1] is not None:
            np.testing.assert_allclose(poses[1].rotation, poses[0].rotation, atol=2e-6)
            np.testing.assert_allclose(poses[1].shift_px, poses[0].shift_px, rtol=1e-6, atol=2e-5)


@pytest.mark.parametrize("name", [name for name in CONVERTED if name.endswith(".star")])
def test_every_cell_is_written_as_it_was_read(name: str, tmp_path: Path) -> None:
    table = read_particle_table(ZOO / name)
    write_star(tmp_path / "anew.star", table)
    again = read_particle_table(tmp_path / "anew.star")
    assert again.particles.equals(table.particles) and list(again.others) == list(table.others)
    assert table.optics is None or (again.optics is not None and again.optics.equals(table.optics))
