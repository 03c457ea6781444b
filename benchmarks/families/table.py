"""The page of families: how the experts of each run, and how far its model is from eager."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.families.compare import Comparison, Errors

_TITLE = """# Families of transformers

Every modelling file of transformers whose experts take an `experts_implementation`, as a random model of two layers
with four experts: `experts_implementation="moekit"`
([how to use it](../../../docs/api/interop.md#experts-of-a-whole-model)) against `"eager"`, on CPU. Written by
`python -m benchmarks families`.

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


def write_table(comparisons: Sequence[Comparison], about: dict[str, Any], path: Path) -> None:
    """Writes the page."""
    versions = ", ".join(f"{name} {about['versions'][name]}" for name in ("python", "torch", "transformers"))
    fused = sum(None not in each.activations for each in comparisons)
    lines = [_TITLE, f"{versions}; commit {about['commit']}, {about['date']}.", ""]
    lines += [f"{len(comparisons)} families, {fused} of them fused.", ""]
    lines += [
        "| family | model | fused | float32: output | gradients | worst | float64: worst | bfloat16: output "
        "| gradients | grouped_mm: output | gradients | generate | reload | back |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---|---|---|",
        *map(_row, comparisons),
    ]
    path.write_text("\n".join(lines) + "\n")


def _row(each: Comparison) -> str:
    fused = ", ".join("no" if name is None else f"`{name}`" for name in each.activations)
    cells = [
        each.family,
        f"`{each.model}`",
        fused,
        *_numbers(each.fp32),
        f"{each.fp32.worst:.0e}",
        f"{each.fp64.worst:.0e}",
    ]
    cells += [*_numbers(each.bf16), *_numbers(each.bf16_grouped_mm)]
    cells += ["" if value is None else "yes" if value else "no" for value in each[-3:]]
    return f"| {' | '.join(cells)} |"


def _numbers(errors: Errors) -> list[str]:
    return [f"{errors.output:.0e}", f"{errors.gradients:.0e}"]
