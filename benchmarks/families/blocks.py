"""Compares blocks of a family to the layers that they become, and its model to itself with swapped blocks."""

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.families.build import SMALL, blocks_of, build
from benchmarks.families.compare import generated, output_of, reloads, tokens
from moekit.interop import from_transformers, swap_moe_blocks_, to_transformers


class BlockComparison(NamedTuple):
    """What the blocks of one family give; errors are relative, as of :class:`~benchmarks.families.compare.Errors`.

    Attributes:
        block: Class of the first block.
        refusal: Why it is refused; None if it is not, and what follows is known.
        convert: Larger error of output and gradient of the input, of the layer that the block becomes, in float32.
        convert_bf16: The same of a block in bfloat16.
        written_back: Whether the layer's weights, written into an empty block, are its weights bit for bit.
        swap: Larger error of output and all gradients as one vector, of the model with swapped blocks.
        works: Whether that generates the same tokens greedily, keeps its names and is saved and loaded without a
            missing or unexpected key.
        swapped_back: Whether the model gives the same output bit for bit when it is swapped back.
    """

    block: str
    refusal: str | None
    convert: float = 0.0
    convert_bf16: float = 0.0
    written_back: bool = False
    swap: float = 0.0
    works: bool = False
    swapped_back: bool = False


def compare_blocks(family: str) -> BlockComparison:
    """Makes every comparison for a family."""
    model = _model(family)
    block = blocks_of(model)[0]
    name = type(block).__name__
    try:
        layer = from_transformers(block)
    except ValueError as refusal:
        return BlockComparison(name, str(refusal))
    rounded = blocks_of(_model(family, torch.bfloat16))[0]
    return BlockComparison(
        name,
        None,
        _convert_error(block, layer),
        _convert_error(rounded, from_transformers(rounded)),
        _is_written_back(block, layer),
        *_swap(model),
    )


def _model(family: str, dtype: torch.dtype = torch.float32) -> Any:
    model = build(family, dtype)
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(3)
        # Corrections and biases start at zero, where no error of theirs would show.
        for each in blocks_of(model):
            for tensor in [*each.parameters(), *each.buffers()]:
                if tensor.ndim == 1 and tensor.is_floating_point():
                    tensor.normal_(std=0.1)
    return model


def _convert_error(block: nn.Module, layer: nn.Module) -> float:
    # Some keep their router in float32.
    dtype = next(block.get_submodule("experts").parameters()).dtype
    x = torch.randn(2, 9, SMALL["hidden_size"], generator=torch.Generator().manual_seed(1)).to(dtype)
    results: list[list[Tensor]] = []
    for module in (block, layer):
        leaf = x.clone().requires_grad_()
        output = module(leaf.clone())
        output = (output if isinstance(output, Tensor) else output[0]).view(x.shape)
        direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(2)).to(x.dtype)
        (gradient,) = torch.autograd.grad((output * direction).sum(), leaf)
        results.append([output.detach().double(), gradient.double()])
    return max(_relative(mine, theirs) for theirs, mine in zip(*results, strict=True))


def _is_written_back(block: nn.Module, layer: Any) -> bool:
    before = copy.deepcopy(block.state_dict())
    empty = copy.deepcopy(block)
    with torch.no_grad():
        for parameter in empty.parameters():
            # Rows that no layer has (of LongCat's identity experts) stay.
            parameter[: getattr(layer.experts, "experts", layer.experts).num_experts].zero_()
    after = to_transformers(layer, empty).state_dict()
    return all(torch.equal(before[name], after[name]) for name in before)


def _swap(model: Any) -> tuple[float, bool, bool]:
    names = list(model.state_dict())
    output, gradients = _run(model)
    expected = generated(model) if model.can_generate() else None
    with swap_moe_blocks_(model):
        swapped_output, swapped_gradients = _run(model)
        works = list(model.state_dict()) == names
        works = works and (expected is None or torch.equal(generated(model), expected))
        works = works and reloads(model, swap_moe_blocks_)
    error = max(_relative(swapped_output, output), _relative(swapped_gradients, gradients))
    restored, restored_gradients = _run(model)
    return error, works, torch.equal(restored, output) and torch.equal(restored_gradients, gradients)


def _run(model: Any) -> tuple[Tensor, Tensor]:
    """Returns the output and all gradients as one vector; of a parameter without any they are zero."""
    model.zero_grad()
    output = output_of(model, tokens())
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(2))
    (output * weight).sum().backward()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    return output.detach(), torch.cat([each.flatten() for each in gradients])


def _relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()
