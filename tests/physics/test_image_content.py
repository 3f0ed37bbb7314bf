"""What an image shows: particles, noise and something else are told apart, and in doubt nothing is thrown away."""

import pytest
import torch
from torch import Tensor

from ace_em.physics.image_content import LEAST_SHOWN, ContentTest, ShellPower, of_unusual_power

COUNT = torch.tensor([1.0, 4, 7, 10, 13, 16, 19, 22])
"""Coefficients of each shell."""
SIGNAL = torch.tensor([8.0, 6, 4, 3, 2, 1, 0.7, 0.5])
"""Signal power of a coefficient, the noise's being 1."""
TEST = ContentTest(poses_tried=1000.0)


def noise(n: int, seed: int) -> Tensor:
    """Squared norms (n, S) of coefficients of unit noise, summed over shells."""
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randn(n, int(2 * c), generator=generator).square().sum(1) / 2 for c in COUNT]
    return torch.stack(parts, 1)


def images(n: int, left: float, strength: float = 1.0, seed: int = 0) -> ShellPower:
    """Images of signal ``strength * SIGNAL``, of which the best pose leaves a share, in noise."""
    residual = noise(n, seed) * (1 + left * strength * SIGNAL)
    return ShellPower(residual + (1 - left) * strength * SIGNAL * COUNT, residual, COUNT)


def empty(n: int, seed: int = 1) -> ShellPower:
    """Images of noise, which the best pose fits a little by chance."""
    power = noise(n, seed)
    return ShellPower(power, power * 0.97, COUNT)


def together(*parts: ShellPower) -> ShellPower:
    return ShellPower.cat(parts)


def shown(test: ContentTest, *parts: ShellPower) -> list[float]:
    """Share of each part that is said to show the particle."""
    said = test.content(together(*parts)).shows_particle.float()
    return [some.mean().item() for some in said.split([len(p.power) for p in parts])]


def test_particles_noise_and_others_are_told_apart() -> None:
    parts = images(600, 0.0), empty(200), images(200, 0.5, seed=2), images(100, 0.9, 10.0, seed=3)
    content = TEST.content(together(*parts))
    torch.testing.assert_close(content.particle + content.empty + content.other, torch.ones(1100))
    particles, of_noise, others, edges = content.particle.split([600, 200, 200, 100])
    assert (particles > 0.5).float().mean() > 0.98
    assert of_noise.max() < 0.1 and edges.max() < 0.01
    assert (others > 0.5).float().mean() < 0.03
    assert content.empty[600:800].mean() > 0.85 and content.other[1000:].min() > 0.99


def test_probabilities_are_as_often_right_as_they_say() -> None:
    """As many others, of which the map leaves more than of the particles: some images are in doubt."""
    content = TEST.content(together(images(2000, 0.0), images(2000, 0.35, seed=2)))
    right = torch.arange(4000) < 2000
    for low, high, least in ((0.0, 0.05, 1500), (0.05, 0.95, 50), (0.95, 1.0, 1500)):
        inside = (content.particle >= low) & (content.particle <= high)
        assert inside.sum() > least
        assert right[inside].float().mean() == pytest.approx(content.particle[inside].mean().item(), abs=0.2)


def test_without_junk_all_are_kept() -> None:
    assert shown(TEST, images(1000, 0.0))[0] > 0.995


@pytest.mark.parametrize("left", [0.2, 0.5])
def test_a_map_that_is_not_yet_right_is_no_reason_to_leave_images_out(left: float) -> None:
    assert shown(TEST, images(1000, left))[0] > 0.98


def test_what_the_map_leaves_of_particles_is_learnt() -> None:
    """Half of the others' power beyond what all images keep."""
    particles, others = shown(TEST, images(700, 0.2), images(300, 0.7, seed=2))
    assert particles > 0.97 and others < 0.1


@pytest.mark.parametrize("scale", [0.7, 1.3])
def test_a_noise_model_that_is_wrong(scale: float) -> None:
    """Too strong or too weak by a third, for all images."""
    parts = [ShellPower(p.power * scale, p.residual * scale, COUNT) for p in (images(700, 0.0), images(300, 0.5, seed=2))]
    particles, others = shown(TEST, *parts)
    assert particles > 0.97 and others < 0.05


def test_noise_that_differs_from_image_to_image() -> None:
    factor = 1 + 0.15 * torch.randn(1000, 1, generator=torch.Generator().manual_seed(4))
    same = images(1000, 0.0)
    differing = ShellPower(same.power + (factor - 1) * same.residual, same.residual * factor, COUNT)
    assert shown(TEST, differing)[0] > 0.97


def test_with_a_map_that_fits_hardly_any_image_all_are_kept() -> None:
    """Thirty images that fit and a thousand that do not: the map was made of the wrong ones."""
    content = TEST.content(together(images(30, 0.0), images(1000, 0.7, seed=2)))
    assert content.particle.mean() > 0.9


def gains(mean: float, sd: float, n: int, seed: int = 0) -> Tensor:
    return mean + sd * torch.randn(n, generator=torch.Generator().manual_seed(seed))


def of_gain(gain: Tensor) -> ShellPower:
    """Images of which the best pose explains so much, and leaves noise."""
    residual = noise(len(gain), 5)
    return ShellPower(residual + gain[:, None] * COUNT / COUNT.sum(), residual, COUNT)


def test_weak_images_are_kept_where_there_is_no_junk() -> None:
    """The same images beside as many of noise are doubtful."""
    weak, of_noise = of_gain(gains(12.0, 3.5, 500)), of_gain(gains(-12.0, 3.5, 1500))
    assert shown(TEST, weak)[0] > 0.98
    kept, kept_of_noise = shown(TEST, weak, of_noise)
    assert kept_of_noise == 0 and 0.8 < kept < 0.97


def test_many_poses_that_fit_a_little_are_evidence_together() -> None:
    """No pose of a weak image is much likelier than an empty image, but hundreds are a little."""
    weak, sums = torch.tensor([4.0]), torch.tensor([8.5])
    assert TEST.log_odds(weak).item() == pytest.approx(4 - 6.9, abs=0.01)
    assert TEST.log_odds(weak, sums).item() == pytest.approx(8.5 - 6.9, abs=0.01)
    # a peak that the grid steps over counts for itself
    assert TEST.log_odds(torch.tensor([20.0]), sums).item() == pytest.approx(20 - 6.9, abs=0.01)


def test_images_whose_neighbours_are_alike_count_less() -> None:
    gain = gains(12.0, 1.0, 100)
    assert ContentTest(1000.0, 1.0).log_odds(gain).mean() == pytest.approx(12 - 6.9, abs=0.3)
    assert ContentTest(1000.0, 0.5).log_odds(gain).mean() == pytest.approx(6 - 6.9, abs=0.3)


@pytest.mark.parametrize("n", [1, LEAST_SHOWN - 1, 200])
def test_with_too_few_particles_all_are_kept(n: int) -> None:
    assert TEST.content(of_gain(gains(-50.0, 1.0, n))).shows_particle.all()


def test_unusual_power() -> None:
    power = torch.cat([gains(10.0, 1.0, 500).clamp(max=12.5), torch.tensor([13.0, 30.0])])
    assert of_unusual_power(power).tolist() == [False] * 501 + [True]
