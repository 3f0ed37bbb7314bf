"""Initialisation of SIRENs (Sitzmann et al. 2020, section 3.2): distributions of weights, arguments and activations."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from ace_em.models.fourier_net import FourierNet, Siren

WIDTH, OMEGAS = 256, (30.0, 40.0)
SEEDS = range(3)


def siren(omega: float, seed: int, depth: int = 3) -> Siren:
    torch.manual_seed(seed)
    return Siren(3, 2, WIDTH, depth, omega)


def points(n: int = 2000) -> Tensor:
    """Points uniform in the cube of +-1."""
    return 2 * torch.rand(n, 3, generator=torch.Generator().manual_seed(9)) - 1


def layers(network: Siren) -> Iterator[tuple[torch.nn.Linear, Tensor, Tensor]]:
    """Each sine layer, its argument ``omega (W x + b)`` and its activation, (2000, 256) each."""
    x = points()
    for layer in network.layers[:-1]:
        assert isinstance(layer, torch.nn.Linear)
        argument = network.omega * layer(x)
        x = torch.sin(argument)
        yield layer, argument, x


def test_forward_applies_all_layers_with_a_linear_output() -> None:
    network = siren(30.0, 0)
    with torch.no_grad():
        *_, (_, _, last) = layers(network)
        torch.testing.assert_close(network(points()), network.layers[-1](last))


def test_the_decoder_has_the_published_networks() -> None:
    decoder = FourierNet(16, 6.0)
    for network, omega, hidden in ((decoder.modulant, 40.0, 3), (decoder.envelope, 30.0, 2)):
        assert network.omega == omega
        weights = [p for name, p in network.named_parameters() if name.endswith("weight")]
        assert [tuple(weight.shape) for weight in weights] == [(WIDTH, 3)] + [(WIDTH, WIDTH)] * hidden + [(2, WIDTH)]


@pytest.mark.parametrize("omega", OMEGAS)
def test_weights_fill_their_bounds(omega: float) -> None:
    network = siren(omega, 0)
    for i, layer in enumerate(network.layers):
        assert isinstance(layer, torch.nn.Linear)
        bound = 1 / 3 if i == 0 else math.sqrt(6 / WIDTH) / omega
        weight = layer.weight.detach()
        assert 0.98 * bound < weight.abs().max() <= bound
        # standard deviation of a uniform distribution; with at least 512 weights, 5 % is three standard errors
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)


@pytest.mark.parametrize("omega", OMEGAS)
@pytest.mark.parametrize("seed", SEEDS)
def test_arguments_have_unit_deviation_about_their_biases(omega: float, seed: int) -> None:
    """``omega W x`` has variance ``2 <x^2>``: 1 for arcsine inputs, 1 - exp(-2) = 0.86 for a sine of a standard normal."""
    with torch.no_grad():
        for i, (layer, argument, _) in enumerate(layers(siren(omega, seed))):
            about_bias = (argument - omega * layer.bias).square().mean().sqrt().item()
            if i == 0:
                # omega |x| / sqrt(27) each way
                assert about_bias == pytest.approx(omega / math.sqrt(27), rel=0.1)
            else:
                assert 0.87 < about_bias < 1.07
                # a normal distribution has kurtosis 3, a uniform one 1.8
                centred = argument - argument.mean(0)
                kurtosis = centred.pow(4).mean(0) / centred.square().mean(0).square()
                assert kurtosis.median().item() == pytest.approx(3, abs=0.4)


@pytest.mark.parametrize("omega", OMEGAS)
@pytest.mark.parametrize("seed", SEEDS)
def test_biases_spread_the_arguments_by_torchs_default(omega: float, seed: int) -> None:
    """As in the published code, biases are uniform in ``+- 1 / sqrt(n_in)``, which adds a variance of omega^2 / 3 n_in."""
    with torch.no_grad():
        for layer, argument, _ in list(layers(siren(omega, seed)))[1:]:
            wanted = math.sqrt(1 + omega**2 / (3 * WIDTH))
            assert argument.square().mean().sqrt().item() == pytest.approx(wanted, rel=0.12)
            assert layer.bias.abs().max() <= 1 / math.sqrt(WIDTH)


@pytest.mark.parametrize("omega", OMEGAS)
@pytest.mark.parametrize("seed", SEEDS)
def test_activations_are_arcsine_distributed(omega: float, seed: int) -> None:
    """Variance 1/2 and ``P(a < x) = 1/2 + asin(x) / pi``."""
    at = torch.linspace(-0.95, 0.95, 39)
    arcsine = 0.5 + torch.asin(at) / math.pi
    with torch.no_grad():
        for i, (_, _, activation) in enumerate(layers(siren(omega, seed))):
            assert activation.square().mean().item() == pytest.approx(0.5, abs=0.07)
            shares = (activation.flatten()[None] < at[:, None]).float().mean(1)
            distance = (shares - arcsine).abs().max().item()
            # a uniform distribution is 0.12 away
            assert distance < (0.03 if i == 0 else 0.06)


def input_gradient(network: Siren) -> Tensor:
    x = points(400).requires_grad_()
    (gradient,) = torch.autograd.grad(network(x)[:, 0].sum(), x)
    assert gradient.isfinite().all()
    return gradient


@pytest.mark.parametrize("omega", OMEGAS)
def test_derivatives_neither_vanish_nor_explode_with_depth(omega: float) -> None:
    """A hidden layer multiplies the power of a derivative by ``2 <cos^2>``, 1 to 1.14; four layers by at most 1.7.

    With half the variance of the weights it would be 1/16, with torch's default weights above 10^9.
    """
    power = {
        depth: sum(input_gradient(siren(omega, seed, depth)).square().mean().item() for seed in range(6)) for depth in (1, 5)
    }
    assert 0.6 < power[5] / power[1] < 1.9
    # and its scale: omega^2 w_first^2 n/2 times the power 2 / omega^2 of the last layer's weights, over 3 n_in
    assert power[1] / 6 == pytest.approx(1 / 27, rel=0.5)
