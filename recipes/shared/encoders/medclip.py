"""Swin weights in Hugging Face's layout, alone or inside MedCLIP's checkpoint, as timm names them.

MedCLIP (RyanWangZf/MedCLIP) keeps one ``pytorch_model.bin`` of both towers: a Hugging Face ``SwinModel`` under
``vision_model.model.``, its projection in ``vision_model.projection_head.weight``, the text tower under
``text_model.``, and ``logit_scale``. Differences from timm's Swin:

- query, key and value are three matrices; timm has one, ``qkv``, in that order;
- a stage ends with its downsampling; in timm the next stage begins with it;
- other names for the same things (``layernorm_before`` is ``norm1``, ``intermediate.dense`` is ``mlp.fc1``, ...);
- ``relative_position_index`` may be saved; timm computes it.

Both spellings of transformers are known: the one its files are written in, and that of its modules since version 5.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

# medclip/constants.py: images are greyscale, so all three channels are normalised by one mean and deviation.
MEDCLIP_MEAN = (0.5862785803043838,) * 3
MEDCLIP_STD = (0.27950088968644304,) * 3

_MARK = "embeddings.patch_embeddings.projection.weight"
_VISION = "vision_model."
_NOT_OURS = ("text_model.", "logit_scale", "vision_model.projection_head.", "classifier.")
_INDEX = ".relative_position_index"

_IN_A_BLOCK = {
    "attention.self.relative_position_bias_table": "attn.relative_position_bias_table",
    "attention.relative_position_bias.relative_position_bias_table": "attn.relative_position_bias_table",
    "attention.output.dense": "attn.proj",
    "attention.o_proj": "attn.proj",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_OUTSIDE = {
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "embeddings.norm": "patch_embed.norm",
    "layernorm": "norm",
}
_BLOCK = re.compile(r"encoder\.layers\.(\d+)\.blocks\.(\d+)\.(.+)")
_DOWNSAMPLE = re.compile(r"encoder\.layers\.(\d+)\.downsample\.(.+)")
_PART = re.compile(r"attention\.(?:self\.)?(query|key|value|q_proj|k_proj|v_proj)\.(weight|bias)")
_PLACE = {"query": 0, "key": 1, "value": 2, "q_proj": 0, "k_proj": 1, "v_proj": 2}


def is_hugging_face_swin(state: Mapping[str, Tensor]) -> bool:
    """Tells whether a state dict holds a Hugging Face ``SwinModel``, under whatever prefix."""
    return _prefix(state) is not None and any("relative_position_bias_table" in name for name in state)


def normalisation(state: Mapping[str, Tensor]) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Returns MedCLIP's mean and standard deviation if the state dict is MedCLIP's, else None."""
    return (MEDCLIP_MEAN, MEDCLIP_STD) if (_prefix(state) or "").startswith(_VISION) else None


def to_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames, joins and moves the image tower's weights as timm's ``SwinTransformer`` has them.

    Args:
        state: With a Hugging Face ``SwinModel``, as :func:`is_hugging_face_swin` tells.

    Returns:
        The image tower alone. Names that are not known keep their spelling, so that the loader names them;
        an attention that lacks one of query, key and value keeps what it has, likewise.
    """
    prefix = _prefix(state) or ""
    tower: dict[str, Tensor] = {}
    parts: dict[str, dict[int, tuple[str, Tensor]]] = {}
    for name, value in state.items():
        if name.startswith(_NOT_OURS) or name.endswith(_INDEX):
            continue
        place = _part_of_qkv(name.removeprefix(prefix))
        if place is None:
            tower[_renamed(name, prefix)] = value
        else:
            joined, index = place
            parts.setdefault(joined, {})[index] = (name, value)
    for joined, parts_of_one in parts.items():
        if len(parts_of_one) == len(set(_PLACE.values())):
            tower[joined] = torch.cat([parts_of_one[index][1] for index in sorted(parts_of_one)])
        else:
            tower.update(parts_of_one.values())
    return tower


def _prefix(state: Mapping[str, Tensor]) -> str | None:
    """Returns what stands before the names of the ``SwinModel``; None if there is none."""
    return next((name.removesuffix(_MARK) for name in state if name.endswith(_MARK)), None)


def _part_of_qkv(name: str) -> tuple[str, int] | None:
    """Returns the joint matrix or bias that a name belongs to, and its place there."""
    block = _BLOCK.fullmatch(name)
    part = _PART.fullmatch(block[3]) if block else None
    if block is None or part is None:
        return None
    return f"layers.{block[1]}.blocks.{block[2]}.attn.qkv.{part[2]}", _PLACE[part[1]]


def _renamed(full_name: str, prefix: str) -> str:
    name = full_name.removeprefix(prefix)
    if moved := _DOWNSAMPLE.fullmatch(name):
        return f"layers.{int(moved[1]) + 1}.downsample.{moved[2]}"
    start, rest, table = "", name, _OUTSIDE
    if block := _BLOCK.fullmatch(name):
        start, rest, table = f"layers.{block[1]}.blocks.{block[2]}.", block[3], _IN_A_BLOCK
    for theirs, ours in table.items():
        end = rest.removeprefix(theirs)
        if end != rest and end in ("", ".weight", ".bias"):
            return f"{start}{ours}{end}"
    return full_name
