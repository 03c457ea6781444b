"""What is read from Triton's own representation of a kernel, from its text: where operands come from, and loops."""

import re
from collections.abc import Iterator
from typing import NamedTuple

TENSOR_CORE_DOT = r"tt\.dot (?=.*(?:tensor<[\dx]+b?f16> \* |inputPrecision = tf32))"
"""Where a product of 16-bit operands, or of float32 in TF32, begins."""

_VALUE = re.compile(r"%[\w-]+")
_DEFINITION = re.compile(r"^\s*(%[\w-]+)(?::\d+)? = (.*)$")
_LOOP = re.compile(r"scf\.for %[\w-]+ = (%[\w-]+) to (%[\w-]+) step (%[\w-]+)")
_DOT = re.compile(rf"{TENSOR_CORE_DOT}(%[\w-]+), (%[\w-]+),")


class Loop(NamedTuple):
    """One ``scf.for``.

    Attributes:
        first: Number of its line.
        last: Number of the line that closes it.
        upper: Name of its upper bound.
        flattened: Whether it is to be fused with the loop inside.
    """

    first: int
    last: int
    upper: str
    flattened: bool


def operand_loads(ttir: str) -> dict[str, int]:
    """Counts the loads that bring operands of products by tensor cores: ``{"descriptors": ..., "pointers": ...}``.

    An operand may pass a transposition, a change of shape or a selection between the load and the product.
    """
    definitions = _definitions(ttir)
    found: dict[str, set[str]] = {"descriptors": set(), "pointers": set()}
    for operands in _DOT.findall(ttir):
        for kind, load in (one for name in operands for one in _loads_of(name, definitions)):
            found[kind].add(load)
    return {kind: len(loads) for kind, loads in found.items()}


def flattened_loops(ttir: str, ttgir: str) -> tuple[int, list[str]]:
    """Counts the loops that are to be fused with the one inside, and describes what is wrong with any.

    Triton runs the fused loop at least once for every step of the outer one, so the inner loop must not be empty: its
    bounds must be the same for all steps, and the code must state that the upper one is positive, or it must be a
    positive constant. (Where a bound is read inside, several versions of Triton compute something else.)
    """
    lines = ttir.splitlines()
    loops = list(_loops(lines))
    definitions = _definitions(ttir)
    wrong: list[str] = []
    flattened = [loop for loop in loops if loop.flattened]
    for outer in flattened:
        for inner in (loop for loop in loops if outer.first < loop.first and loop.last < outer.last):
            if any(
                re.match(rf"\s*{re.escape(inner.upper)}(?::\d+)? =", line) for line in lines[outer.first : outer.last]
            ):
                wrong.append("the trip count of a loop that is fused depends on the tile.")
            elif not _is_positive(inner.upper, definitions, ttir):
                wrong.append("nothing states that the trip count of a loop that is fused is at least 1.")
    if flattened and len(list(_loops(ttgir.splitlines()))) >= len(loops):
        wrong.append("a loop that is to be fused with the one inside is not.")
    return len(flattened), wrong


def _definitions(ir: str) -> dict[str, str]:
    """Returns the text of the operation that makes each value."""
    matches = (_DEFINITION.match(line) for line in ir.splitlines())
    return {match[1]: match[2] for match in matches if match}


def _loads_of(name: str, definitions: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yields the kind and the name of the loads that a value comes from."""
    operation = definitions.get(name, "")
    if operation.startswith(("tt.descriptor_load", "tt.descriptor_gather")):
        yield "descriptors", name
    elif operation.startswith("tt.load"):
        yield "pointers", name
    elif operation.startswith(("tt.trans", "tt.reshape", "arith.select", "ttg.convert_layout", "tt.fp_to_fp")):
        for operand in _VALUE.findall(operation.split(" : ")[0]):
            yield from _loads_of(operand, definitions)


def _loops(lines: list[str]) -> Iterator[Loop]:
    open_blocks: list[tuple[int, str] | None] = []
    for number, line in enumerate(lines):
        text = line.split(" loc(")[0].rstrip()
        if re.match(r"\s*\}", text) and open_blocks:
            begun = open_blocks.pop()
            if begun is not None:
                yield Loop(begun[0], number, begun[1], "tt.flatten" in text)
        if text.endswith("{"):
            match = _LOOP.search(text)
            open_blocks.append((number, match[2]) if match else None)


def _is_positive(name: str, definitions: dict[str, str], ttir: str) -> bool:
    constant = re.match(r"arith\.constant (-?\d+)", definitions.get(name, ""))
    if constant:
        return int(constant[1]) > 0
    for assumed in re.findall(r"llvm\.intr\.assume (%[\w-]+)", ttir):
        match = re.match(r"arith\.cmpi (sgt|sge), (%[\w-]+), (%[\w-]+)", definitions.get(assumed, ""))
        if match and match[2] == name:
            bound = re.match(r"arith\.constant (-?\d+)", definitions.get(match[3], ""))
            if bound and int(bound[1]) + (match[1] == "sgt") >= 1:
                return True
    return False
