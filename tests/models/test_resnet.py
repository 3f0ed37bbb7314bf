"""The encoder of the paper: names and size of torchvision's ResNet-18 trunk, and image normalisation."""

import torch

from ace_em.maths.half_plane import HalfPlane
from ace_em.models.resnet import BasicBlock, ResNet18, ResNetEncoder


def test_trunk_has_the_published_size_and_names() -> None:
    trunk = ResNet18(5)
    assert sum(p.numel() for p in trunk.parameters()) == 11_182_784
    state = trunk.state_dict()
    # torchvision's resnet18 has 122 entries, two of them in the classifier
    assert len(state) == 120
    shapes = {
        "conv1.weight": (64, 5, 7, 7),
        "bn1.running_var": (64,),
        "layer1.0.conv1.weight": (64, 64, 3, 3),
        "layer1.1.bn2.num_batches_tracked": (),
        "layer2.0.downsample.0.weight": (128, 64, 1, 1),
        "layer3.0.downsample.1.running_mean": (256,),
        "layer4.0.conv1.weight": (512, 256, 3, 3),
        "layer4.1.bn2.bias": (512,),
    }
    for name, shape in shapes.items():
        assert state[name].shape == shape, name
    assert not any(name.startswith("layer1.0.downsample") or ".1.downsample" in name for name in state)


def test_trunk_halves_the_image_five_times() -> None:
    trunk = ResNet18(5).eval()
    sizes = []
    for layer in (trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4):
        layer.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape[1:])))
    with torch.no_grad():
        assert trunk(torch.randn(1, 5, 64, 64)).shape == (1, 512)
    assert sizes == [(64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)]


def test_block_adds_its_input() -> None:
    """With the second convolution set to zero, the block is its rectified shortcut."""
    block = BasicBlock(4, 4, 1).eval()
    torch.nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(block(x), x.relu())


def test_encoder_is_independent_of_the_image_scale() -> None:
    torch.manual_seed(0)
    half_plane = HalfPlane.within(16)
    encoder = ResNetEncoder(half_plane, 2, 2.0, hidden=32).eval()
    image_ft = half_plane.from_image(torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(1)))
    with torch.no_grad():
        one, other, black = encoder(image_ft), encoder(image_ft * 37), encoder(image_ft * -1)
        torch.testing.assert_close(one.rotation, other.rotation, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(one.shift_px, other.shift_px, atol=1e-5, rtol=1e-4)
        # but contrast matters, and a constant image gives no division by zero
        assert (one.rotation - black.rotation).abs().max() > 1e-3
        assert encoder(image_ft * 0).rotation.isfinite().all()


def test_trunk_receives_the_filtered_images() -> None:
    torch.manual_seed(0)
    half_plane = HalfPlane.within(16)
    encoder = ResNetEncoder(half_plane, 1, 2.0, hidden=32).eval()
    seen = []
    encoder.trunk.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    image = half_plane.to_image(half_plane.from_image(torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(1))))
    with torch.no_grad():
        encoder(half_plane.from_image(image))
    (channels,) = seen
    assert channels.shape == (2, 5, 16, 16)
    # a delta first, then increasingly smooth
    torch.testing.assert_close(channels[:, 0], image / image.std((1, 2), keepdim=True), atol=1e-4, rtol=1e-4)
    power = channels.square().mean((0, 2, 3))
    assert (power[1:] < power[:-1]).all()
