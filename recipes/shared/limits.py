"""Values that settings may have, checked before anything is read or built."""

import math
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

Check = tuple[Callable[[Any], bool], str]

_AT_LEAST_1: Check = (lambda value: value >= 1, "at least 1")
_AT_LEAST_0: Check = (lambda value: value >= 0, "at least 0")
_ABOVE_0: Check = (lambda value: value > 0, "above 0")
_SHARE: Check = (lambda value: 0 <= value < 1, "at least 0 and below 1")

_CHECKS: dict[str, Check] = {
    **dict.fromkeys(
        (
            "epochs", "batch_size", "accumulate", "devices", "nodes", "image_size", "image_stride", "text_tokens",
            "dim", "num_heads", "num_experts", "top_k", "expert_hidden_dim", "expert_dim", "expert_depth", "slices",
            "router_hidden_dim", "contrast_epochs", "lora_rank", "train_studies", "val_studies", "test_studies",
            "steps_per_epoch", "shuffle_buffer", "expert_parallel",
        ),
        _AT_LEAST_1,
    ),
    **dict.fromkeys(
        (
            "warmup_epochs", "weight_decay", "clip_norm", "patience", "workers", "lr", "lr_encoder", "lr_head",
            "balance_weight", "z_weight", "entropy_weight", "global_weight", "local_weight", "router_weight",
            "align_to", "local_scales", "seeds", "split_seed", "cache_gigabytes", "contrast_lr", "masked_weight",
            "frozen_text_layers",
        ),
        _AT_LEAST_0,
    ),
    **dict.fromkeys(("lora_alpha", "temperature", "temperatures", "local_temperatures"), _ABOVE_0),
    "image_to_text_weight": (lambda value: 0 <= value <= 1, "between 0 and 1"),
    "dropout": _SHARE,
    "mass": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
    **dict.fromkeys(("drop_image", "drop_text"), (lambda value: 0 <= value <= 1, "at least 0 and at most 1")),
    "data_size": (lambda value: value in (28, 64, 128, 224), "28, 64, 128 or 224"),
}  # fmt: skip


def check_limits(settings: Any) -> None:
    """Refuses settings outside their limits; what may be ``None`` or a tuple is checked where it holds numbers.

    Args:
        settings: A dataclass, whose fields may be dataclasses themselves.

    Raises:
        ValueError: Naming the setting, its option on the command line, its limits and the value.
    """
    for field in fields(settings):
        value = getattr(settings, field.name)
        if is_dataclass(value):
            check_limits(value)
            continue
        for number in value if isinstance(value, tuple) else (value,):
            _check(field.name, number)
    top_k, num_experts = getattr(settings, "top_k", 1), getattr(settings, "num_experts", 1)
    if top_k > num_experts:
        raise ValueError(f"top_k (--top-k) must be at most num_experts (--num-experts), {num_experts}, got {top_k}.")
    dim, num_heads = getattr(settings, "dim", 0), getattr(settings, "num_heads", 1)
    if dim % num_heads:
        raise ValueError(f"num_heads (--num-heads) must divide dim (--dim), {dim}, got {num_heads}.")


def _check(name: str, value: Any) -> None:
    if name not in _CHECKS or isinstance(value, bool) or not isinstance(value, int | float):
        return
    holds, limits = _CHECKS[name]
    if not (math.isfinite(value) and holds(value)):
        raise ValueError(f"{name} (--{name.replace('_', '-')}) must be {limits}, got {value}.")
