"""What of a pretrained encoder is trained: everything, nothing, or low-rank adapters (LoRA) of its linear layers."""

from typing import Literal

from torch import nn

from recipes.shared.extras import require

Tuning = Literal["full", "frozen", "lora"]


def set_tuning(model: nn.Module, tuning: Tuning, option: str, *, rank: int, alpha: float) -> None:
    """Freezes an encoder, or adds adapters and freezes the rest; its weights must be loaded before.

    Adapters start at 0, so the encoder computes what it did.

    Args:
        model: The encoder; of timm or transformers.
        tuning: What is trained.
        option: Name of the option that ``tuning`` came from, for errors.
        rank: Of the adapters.
        alpha: Their output is multiplied by ``alpha / rank``.

    Raises:
        ImportError: If ``tuning`` is ``"lora"`` and peft is missing; the message says how to install it.
        ValueError: If the encoder has no linear layers for adapters.
    """
    if tuning == "full":
        return
    if tuning == "frozen":
        model.requires_grad_(False)
        return
    peft = require("peft", f"{option} lora", extra="finetune")
    # torch's attention multiplies by the weights of its projections itself, so an adapter there would not be called.
    inside = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention))
    linear = (name for name, module in model.named_modules() if isinstance(module, nn.Linear))
    names = [name for name in linear if not name.startswith(inside)]
    if not names:
        raise ValueError(
            f"{option} lora needs an encoder with linear layers, but {type(model).__name__} has none: use {option} "
            "full or frozen, or another encoder."
        )
    peft.inject_adapter_in_model(peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=names), model)
