"""The page of families: how the experts of each run, and how far its model is from eager."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.families.blocks import BlockComparison
from benchmarks.families.compare import Comparison, Errors

_TITLE = """# Families of transformers

Every modelling file of transformers whose experts take an `experts_implementation`, and DBRX, Llama 4 and LongCat, as a
random model of two layers with four experts, on CPU. Written by `python -m benchmarks families`.

Whole blocks ([how to convert and swap them](../../../docs/api/interop.md#whole-blocks-in-place)):

- **convert**: largest relative error of output and gradient of the input, of the `SparseMoE` that `from_transformers`
  makes of the first block, in float32 and in bfloat16 (where a rounding makes one of them choose another expert, it is
  large). **written**: `to_transformers` writes its weights into an empty block, and they are the block's bit for bit.
- **swap**: largest relative error of output and all gradients as one vector, of the model after `swap_moe_blocks_`, in
  float32. **works**: greedy generation gives the same tokens, parameters keep their names, and the swapped model is
  saved and loaded without a missing or unexpected key. **swapped back**: output and gradients are the same bits.

Experts alone ([how to use them](../../../docs/api/interop.md#experts-of-a-whole-model)):
`experts_implementation="moekit"` against `"eager"`:

- **fused**: the activation by which the experts run as one operation; the others run the module's own gate between two
  grouped GEMMs.
- **float32**: relative errors of the logits (of the hidden states of a model without a head) and of all gradients as
  one vector; **worst**: the largest error of the gradient of a single parameter, in float32 and in float64 (where some
  models still compute parts in float32). In `hy_v4` and `hy_v4_vl` the gradient of the last mixing of residual streams
  is a sum that cancels, and in `deepseek_v4`, whose random model has one expert for each token, that of the router is
  zero: a rounding shows there in float32, and vanishes in float64.
- **bfloat16**: the same errors of a model in bfloat16, ours and those of `"grouped_mm"`. Where a rounding makes a
  router of the second layer choose another expert, they are large; that is so of both.
- **generate**: greedy generation gives eager's tokens. **reload**: `save_pretrained` and `from_pretrained` without a
  missing or unexpected key, and the same output. **back**: set to `"eager"` again, the output is the same bits.
"""


Row = tuple[str, Comparison | None, BlockComparison]


def write_table(comparisons: Sequence[Row], about: dict[str, Any], path: Path) -> None:
    """Writes the page.

    Args:
        comparisons: Of each family its name, what its experts give (None if they take no implementation) and what its
            blocks give.
        about: Versions, commit and date.
        path: The page.
    """
    versions = ", ".join(f"{name} {about['versions'][name]}" for name in ("python", "torch", "transformers"))
    experts = [each for _, each, _ in comparisons if each is not None]
    fused = sum(None not in each.activations for each in experts)
    converted = sum(each.refusal is None for _, _, each in comparisons)
    refused = [(family, each) for family, _, each in comparisons if each.refusal is not None]
    lines = [_TITLE, f"{versions}; commit {about['commit']}, {about['date']}.", ""]
    lines += [
        f"{len(comparisons)} families. Blocks of {converted} are converted and swapped; experts of {len(experts)} take "
        f"an implementation, {fused} of them fused.",
        "",
    ]
    lines += [
        "| family | convert | bfloat16 | written | swap | works | swapped back "
        "| model | fused | float32: output | gradients | worst | float64: worst | bfloat16: output "
        "| gradients | grouped_mm: output | gradients | generate | reload | back |",
        "|---|---:|---:|---|---:|---|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---|---|---|",
        *(f"| {' | '.join([family, *_of_blocks(blocks), *_of_experts(of)])} |" for family, of, blocks in comparisons),
    ]
    if refused:
        lines += ["", "Blocks that are refused, and how they differ from the nearest one that is not:", ""]
        lines += [f"- {family}: `{each.block}`, {_reason(each.refusal or '')}" for family, each in refused]
    path.write_text("\n".join(lines) + "\n")


def _reason(refusal: str) -> str:
    """Returns the part of a refusal that tells how the block differs."""
    match = re.search(r"got a \w+ of [\w.]+, (.*)\. Build", refusal)
    reason = refusal if match is None else match[1]
    return reason if len(reason) <= 200 else f"{reason[:200]} …"


def _of_blocks(each: BlockComparison) -> list[str]:
    if each.refusal is not None:
        return ["refused", "", "", "refused", "", ""]
    return [
        *(f"{error:.0e}" for error in (each.convert, each.convert_bf16)),
        _yes(each.written_back),
        f"{each.swap:.0e}",
        *map(_yes, (each.works, each.swapped_back)),
    ]


def _of_experts(each: Comparison | None) -> list[str]:
    if each is None:
        return [""] * 13
    fused = ", ".join("no" if name is None else f"`{name}`" for name in each.activations)
    cells = [f"`{each.model}`", fused, *_numbers(each.fp32), f"{each.fp32.worst:.0e}", f"{each.fp64.worst:.0e}"]
    cells += [*_numbers(each.bf16), *_numbers(each.bf16_grouped_mm)]
    return cells + ["" if value is None else _yes(value) for value in each[-3:]]


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _numbers(errors: Errors) -> list[str]:
    return [f"{errors.output:.0e}", f"{errors.gradients:.0e}"]
