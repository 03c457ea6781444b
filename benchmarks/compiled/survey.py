"""Compiles everything that the cases launch, each piece of code once, on all cores."""

import multiprocessing
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import triton

from benchmarks.compiled.compile import compile_code
from benchmarks.compiled.exceptions import exception_for
from benchmarks.compiled.laws import broken_laws
from benchmarks.compiled.specialize import Specialization
from moekit_kernels.targets import TARGETS

Entry = dict[str, Any]
"""One piece of code: a row of the table, as it stands in json."""


class Recorded(NamedTuple):
    """One launch of one case.

    Attributes:
        case: Operation, shape and direction.
        dtype: Of the case: ``"bf16"`` or ``"fp16"``.
        specialization: What it needs compiled.
    """

    case: str
    dtype: str
    specialization: Specialization


def survey(recorded: Iterable[Recorded], workers: int) -> list[Entry]:
    """Returns one entry for each different piece of code, sorted; what does not compile has the key ``"error"``."""
    specializations: dict[str, Specialization] = {}
    users: dict[str, list[Recorded]] = {}
    for one in recorded:
        key = one.specialization.key
        specializations.setdefault(key, one.specialization)
        users.setdefault(key, []).append(one)
    # Fresh processes: Triton starts threads, and a fork does not survive those.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        read = list(pool.map(_read, specializations.values()))
    entries = [
        _entry(one, users[key]) | values for (key, one), values in zip(specializations.items(), read, strict=True)
    ]
    targets = list(TARGETS)
    entries.sort(key=lambda e: (e["kernel"], targets.index(e["target"]), e["dtypes"], e["cases"], str(e["constants"])))
    _number_variants(entries)
    return entries


def broken_by(entry: Entry) -> list[str]:
    """Returns the laws that an entry breaks, or why it did not compile."""
    return entry["broken"] if "error" not in entry else [f"does not compile: {entry['error']}"]


def _entry(specialization: Specialization, users: list[Recorded]) -> Entry:
    return {
        "kernel": specialization.name,
        "target": specialization.target.name,
        "dtypes": sorted({user.dtype for user in users}),
        "cases": sorted({user.case for user in users}),
        "constants": {name: _plain(value) for name, value in sorted(specialization.declared_constants().items())},
        "num_warps": specialization.num_warps,
        "num_stages": specialization.num_stages,
    }


def _number_variants(entries: list[Entry]) -> None:
    """Numbers entries that differ in the types or the divisibility of their arguments alone, in launch order."""
    seen: Counter[str] = Counter()
    for entry in entries:
        same = repr([entry[key] for key in ("kernel", "target", "dtypes", "cases", "constants")])
        entry["variant"] = seen[same]
        seen[same] += 1


def _read(specialization: Specialization) -> Entry:
    try:
        code = compile_code(specialization)
    except Exception as error:  # Triton's compilers raise many types, and each belongs in the table
        return {"error": _innermost(error)}
    values = code._asdict() | {"dots": [list(shape) for shape in code.dots]}
    target, constants = specialization.target, specialization.declared_constants()
    exception = exception_for(specialization.name, target.name, triton.__version__, constants)
    if exception is not None and (code.spills or code.stack):
        values["exception"] = exception.citation
    broken = broken_laws(code, target, exception, asynchronous=specialization.copies_asynchronously)
    return values | {"broken": list(broken)}


def _innermost(error: BaseException) -> str:
    """Describes the innermost cause; the errors above it only tell where the call is."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return f"{type(error).__name__}: {error}"


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
