"""Compares a family's model with ``experts_implementation="moekit"`` to itself with ``"eager"``."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.families.build import build, experts_of
from moekit.interop import fused_activation

PROMPT, NEW_TOKENS = 7, 6


class Errors(NamedTuple):
    """Relative errors (norm of the difference over the norm of eager's).

    Attributes:
        output: Of the logits, or of the hidden states of a model without a head.
        gradients: Of all gradients as one vector.
        worst: The largest of the errors of each parameter's gradient; one of less than a millionth of the norm of all
            gradients counts as zero, and is compared to that millionth.
        parameter: Its name.
    """

    output: float
    gradients: float
    worst: float
    parameter: str


class Comparison(NamedTuple):
    """What one family gives.

    Attributes:
        family: Its folder in ``transformers.models``.
        model: Class of the model.
        activations: By which its experts run fused; None for those that run unfused.
        fp32: Errors in float32.
        fp64: Errors in float64, in which sums that cancel leave no doubt.
        bf16: Errors of a model in bfloat16, which rounds to 4e-3.
        bf16_grouped_mm: Those of transformers' own ``"grouped_mm"``, to compare.
        generates: Whether greedy generation gives the same tokens; None of a model that does not generate.
        reloads: Whether a saved model loads without a missing or unexpected key and gives the same output.
        returns: Whether the model gives eager's output bit for bit when it is set back.
    """

    family: str
    model: str
    activations: tuple[str | None, ...]
    fp32: Errors
    fp64: Errors
    bf16: Errors
    bf16_grouped_mm: Errors
    generates: bool | None
    reloads: bool
    returns: bool


def compare(family: str) -> Comparison:
    """Makes every comparison for a family."""
    model = build(family)
    model.set_experts_implementation("eager")
    with torch.no_grad():
        before = output_of(model, tokens())
    fp32 = errors(model)
    activations = dict.fromkeys(fused_activation(experts) for experts in experts_of(model))
    generates = same_tokens(model) if model.can_generate() else None
    reloads = reloads_equal(model)
    model.set_experts_implementation("eager")
    with torch.no_grad():
        returns = torch.equal(before, output_of(model, tokens()))
    fp64 = errors(build(family, torch.float64))
    rounded = build(family, torch.bfloat16)
    bf16 = [errors(rounded, implementation) for implementation in ("moekit", "grouped_mm")]
    name = type(model).__name__
    return Comparison(family, name, tuple(activations), fp32, fp64, *bf16, generates, reloads, returns)


def tokens(length: int = PROMPT, batch: int = 2) -> Tensor:
    """Returns token ids that are no special tokens."""
    return torch.randint(3, 64, (batch, length), generator=torch.Generator().manual_seed(1))


def output_of(model: Any, ids: Tensor) -> Tensor:
    """Returns the logits, or the last hidden states of a model without a head."""
    output = model(input_ids=ids)
    return output.logits if "logits" in output else output.last_hidden_state


def errors(model: Any, implementation: str = "moekit") -> Errors:
    """Compares outputs and gradients to eager's; leaves the model set to the implementation."""
    outputs, gradients = [], []
    for each in ("eager", implementation):
        model.set_experts_implementation(each)
        model.zero_grad()
        output = output_of(model, tokens())
        weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(2))
        (output * weight.to(output.dtype)).sum().backward()
        outputs.append(output.detach().double())
        gradients.append({name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None})
    eager, ours = gradients
    if eager.keys() != ours.keys():
        raise ValueError(f"these parameters have a gradient in one case only: {sorted(eager.keys() ^ ours.keys())}")
    whole = [torch.cat([gradient.flatten() for gradient in each.values()]) for each in (ours, eager)]
    least = 1e-6 * whole[1].norm().item()
    of_parameters = {name: _relative(ours[name], eager[name], least) for name in eager}
    worst = max(of_parameters, key=lambda name: of_parameters[name])
    return Errors(_relative(outputs[1], outputs[0]), _relative(*whole), of_parameters[worst], worst)


def generated(model: Any) -> Tensor:
    """Returns the tokens of greedy generation."""
    options = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False}
    return model.generate(tokens(), attention_mask=torch.ones_like(tokens()), **options)


def same_tokens(model: Any) -> bool:
    """Returns whether greedy generation gives eager's tokens; leaves the model set to moekit."""
    texts = []
    for implementation in ("eager", "moekit"):
        model.set_experts_implementation(implementation)
        texts.append(generated(model))
    return torch.equal(*texts)


def reloads_equal(model: Any) -> bool:
    """Saves a model that is set to moekit, and loads it as such."""
    return reloads(model, experts_implementation="moekit")


def reloads(model: Any, prepare: Callable[[Any], object] | None = None, **options: Any) -> bool:
    """Returns whether a model is saved and loaded without a missing or unexpected key, and gives the same output.

    Args:
        model: The model.
        prepare: Is called with the loaded model.
        options: Of ``from_pretrained``.
    """
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        model.save_pretrained(folder)
        if "experts_implementation" in json.loads((Path(folder) / "config.json").read_text()):
            return False
        expected = output_of(model, tokens())
        loaded, info = type(model).from_pretrained(folder, output_loading_info=True, **options)
        if prepare is not None:
            prepare(loaded.eval())
        complete = not (info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"])
        # Loaded weights lie elsewhere in memory, by which torch's products choose their order of addition.
        return complete and _relative(output_of(loaded.eval(), tokens()), expected) <= 1e-6


def _relative(a: Tensor, b: Tensor, least: float = 0.0) -> float:
    difference, size = (a - b).norm().item(), max(b.norm().item(), least)
    return difference / size if size else float(difference > 0)
