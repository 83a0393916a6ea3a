"""Residual networks (He et al., "Deep residual learning for image recognition", 2015), by torchvision's names.

Parameters have the names that torchvision gives them, so that its state dicts fit.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from disttrain import missing, nn
from disttrain.nn.fusion import batch_norm_relu
from disttrain.tensors import Tensor

__all__ = ["BasicBlock", "Bottleneck", "ResNet", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around which the input is added."""

    expansion = 1

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        norm_layer: Callable[[int], nn.Module] = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, 1, bias=False)
        self.bn1 = norm_layer(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = norm_layer(planes)
        self.downsample = downsample
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of ``x``, shape ``(B, inplanes, H, W)``."""
        out = batch_norm_relu(self.bn1, self.relu, self.conv1(x))
        out = self.conv2(out)
        shortcut = x if self.downsample is None else self.downsample(x)
        return batch_norm_relu(self.bn2, self.relu, out, shortcut)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around which the input is added; the 3x3 has the stride."""

    expansion = 4

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        norm_layer: Callable[[int], nn.Module] = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 1, bias=False)
        self.bn1 = norm_layer(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn2 = norm_layer(planes)
        self.conv3 = nn.Conv2d(planes, planes * self.expansion, 1, bias=False)
        self.bn3 = norm_layer(planes * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of ``x``, shape ``(B, inplanes, H, W)``."""
        out = batch_norm_relu(self.bn1, self.relu, self.conv1(x))
        out = batch_norm_relu(self.bn2, self.relu, self.conv2(out))
        out = self.conv3(out)
        shortcut = x if self.downsample is None else self.downsample(x)
        return batch_norm_relu(self.bn3, self.relu, out, shortcut)


class ResNet(nn.Module):
    """A residual network for images ``(B, 3, H, W)``; returns scores ``(B, num_classes)``.

    Args:
        block: :class:`BasicBlock` or :class:`Bottleneck`.
        layers: blocks in each of the four stages.
        num_classes: number of scores.
        zero_init_residual: begin with every block as the identity.
        norm_layer: makes a normalization of a number of channels.
    """

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        layers: list[int],
        num_classes: int = 1000,
        zero_init_residual: bool = False,
        norm_layer: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self._norm = norm_layer or nn.BatchNorm2d
        self.inplanes = 64
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = self._norm(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = self._stage(block, 64, layers[0], 1)
        self.layer2 = self._stage(block, 128, layers[1], 2)
        self.layer3 = self._stage(block, 256, layers[2], 2)
        self.layer4 = self._stage(block, 512, layers[3], 2)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(512 * block.expansion, num_classes)
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
            elif zero_init_residual and isinstance(m, BasicBlock | Bottleneck):
                last = m.bn2 if isinstance(m, BasicBlock) else m.bn3
                nn.init.constant_(last.weight, 0)

    def _stage(self, block: type[BasicBlock | Bottleneck], planes: int, count: int, stride: int) -> nn.Module:
        shortcut = None
        if stride != 1 or self.inplanes != planes * block.expansion:
            shortcut = nn.Sequential(
                nn.Conv2d(self.inplanes, planes * block.expansion, 1, stride, bias=False),
                self._norm(planes * block.expansion),
            )
        blocks = [block(self.inplanes, planes, stride, shortcut, self._norm)]
        self.inplanes = planes * block.expansion
        blocks += [block(self.inplanes, planes, norm_layer=self._norm) for _ in range(1, count)]
        return nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores of images."""
        x = self.maxpool(batch_norm_relu(self.bn1, self.relu, self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))  # type: ignore[no-any-return]


def _make(name: str, block: type[BasicBlock | Bottleneck], layers: list[int]) -> Callable[..., ResNet]:
    def make(*, weights: Any = None, progress: bool = True, **kwargs: Any) -> ResNet:
        if kwargs.pop("pretrained", False):
            weights = "pretrained"
        if weights is not None:
            raise NotImplementedError(
                f"{name}(weights={weights!r}): nothing is downloaded; convert the state dict to safetensors and load it"
            )
        return ResNet(block, layers, **kwargs)

    make.__name__ = make.__qualname__ = name
    make.__doc__ = f"Return a {name} with random weights; the options are :class:`ResNet`'s."
    return make


resnet18 = _make("resnet18", BasicBlock, [2, 2, 2, 2])
resnet34 = _make("resnet34", BasicBlock, [3, 4, 6, 3])
resnet50 = _make("resnet50", Bottleneck, [3, 4, 6, 3])
resnet101 = _make("resnet101", Bottleneck, [3, 4, 23, 3])
resnet152 = _make("resnet152", Bottleneck, [3, 8, 36, 3])

resnet = sys.modules[__name__]
"""``torchvision.models.resnet`` is where these are at home there."""


if not TYPE_CHECKING:  # which would take every name for granted
    __getattr__ = missing.of(__name__)
