"""The paper's encoder (appendix A.1): five Gaussian filters, ResNet-18, two MLP heads."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ace_em.config import AceConfig
from ace_em.maths.filters import filter_bank, gaussian_kernels
from ace_em.maths.half_plane import HalfPlane
from ace_em.models.encoder import PoseEncoder


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with a shortcut (He et al. 2016)."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.downsample = (
            None
            if stride == 1 and c_in == c_out
            else nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))
        )

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class ResNet18(nn.Module):
    """The trunk of ResNet-18 with torchvision's parameter names and five input channels: 11,182,784 parameters."""

    def __init__(self, channels: int = 5) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = nn.Sequential(BasicBlock(64, 64, 1), BasicBlock(64, 64, 1))
        self.layer2 = nn.Sequential(BasicBlock(64, 128, 2), BasicBlock(128, 128, 1))
        self.layer3 = nn.Sequential(BasicBlock(128, 256, 2), BasicBlock(256, 256, 1))
        self.layer4 = nn.Sequential(BasicBlock(256, 512, 2), BasicBlock(512, 512, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x.mean((-1, -2))


class ResNetEncoder(PoseEncoder):
    """``(MLPs o ResNet-18 o filter bank)(image)`` (eq. 18), on the real-space image at the working box."""

    kernels: Tensor

    def __init__(self, half_plane: HalfPlane, n_hypotheses: int, max_shift_px: float, hidden: int = 512) -> None:
        super().__init__(512, n_hypotheses, max_shift_px, hidden)
        self.half_plane = half_plane
        self.register_buffer("kernels", gaussian_kernels())
        self.trunk = ResNet18(len(self.kernels))

    @staticmethod
    def build(half_plane: HalfPlane, diameter_px: float, config: AceConfig) -> "ResNetEncoder":
        return ResNetEncoder(half_plane, config.hypotheses, config.max_shift * half_plane.box)

    def features(self, image_ft: Tensor) -> Tensor:
        images = self.half_plane.to(image_ft.device).to_image(image_ft)
        # normalise each image: the standard deviation of whitened images depends on the working box
        images = images / images.std(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(images.dtype).tiny)
        return self.trunk(filter_bank(images, self.kernels))
