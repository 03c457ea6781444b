"""torchvision's ResNet, built as large as a state dict says, with the maps of its last two stages."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet


class Maps(NamedTuple):
    """Maps of images.

    Attributes:
        third: ``(B, C / 2, 2 h, 2 w)``, of the third stage.
        last: ``(B, C, h, w)``, of the last one.
    """

    third: Tensor
    last: Tensor


def build_resnet(state: Mapping[str, Tensor], prefix: str, fc: nn.Module | None = None) -> ResNet:
    """Builds a ResNet with random weights.

    Args:
        state: Names under ``prefix`` are torchvision's.
        prefix: Of the names.
        fc: Last layer; an identity by default.

    Raises:
        ValueError: If there is none in the state.
    """
    blocks = {
        match.group(1, 2) for name in state if (match := re.match(re.escape(prefix) + r"layer(\d)\.(\d+)\.", name))
    }
    counts = [len([one for one in blocks if one[0] == str(stage)]) for stage in range(1, 5)]
    if not all(counts):
        raise ValueError(f"the file holds no ResNet under {prefix!r}: layer1 to layer4 are expected (--model).")
    deep = f"{prefix}layer1.0.conv3.weight" in state
    model = ResNet(Bottleneck if deep else BasicBlock, counts)
    model.fc = nn.Identity() if fc is None else fc
    return model


def resnet_maps(model: ResNet, images: Tensor) -> Maps:
    """Computes the maps of ``(B, 3, H, W)`` images."""
    states = model.maxpool(model.relu(model.bn1(model.conv1(images))))
    third = model.layer3(model.layer2(model.layer1(states)))
    return Maps(third, model.layer4(third))
