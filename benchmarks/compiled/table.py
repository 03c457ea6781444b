"""The committed tables, one for each version of Triton whose code was read, and what differs from them."""

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import triton

from benchmarks.compiled.survey import Entry, broken_by

FOLDER = Path(__file__).parents[1] / "results" / "compiled"


def path_of(version: str = triton.__version__) -> Path:
    """Returns where the table of a version of Triton is committed."""
    return FOLDER / f"triton-{version}.json"


def versions() -> list[str]:
    """Returns the versions of Triton whose code was read: those that have a table."""
    return sorted(path.stem.removeprefix("triton-") for path in FOLDER.glob("triton-*.json"))


def not_read(version: str = triton.__version__) -> str | None:
    """Returns a sentence if the code of this version of Triton was not read, so no law is known to hold; else None."""
    if version in versions():
        return None
    return (
        f"Triton {version} compiles to code that was not read (read: {', '.join(versions()) or 'none'}), "
        "so this is a report and no failure; `python -m benchmarks compiled` reads it and writes its table."
    )


def write(entries: Iterable[Entry], path: Path) -> None:
    """Writes the table, one line an entry."""
    lines = ",\n".join(json.dumps(entry, sort_keys=True) for entry in entries)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{{"triton": "{triton.__version__}",\n"entries": [\n{lines}\n]}}\n')


def read(path: Path) -> dict[str, Any]:
    """Reads the table of a file: ``{"triton": version, "entries": [...]}``."""
    return json.loads(path.read_text())


def differences(before: Iterable[Entry], after: Iterable[Entry]) -> list[str]:
    """Returns one line for each entry that is new, gone or different."""
    old, new = ({title(entry): entry for entry in entries} for entries in (before, after))
    sentences = [f"gone: {one}" for one in old.keys() - new.keys()]
    for one, entry in new.items():
        if one not in old:
            sentences.append(f"new: {one}")
            continue
        changes = [
            f"{key} {old[one].get(key)} -> {entry.get(key)}"
            for key in sorted(old[one].keys() | entry.keys())
            if old[one].get(key) != entry.get(key)
        ]
        if changes:
            sentences.append(f"changed: {one}: {', '.join(changes)}")
    return sorted(sentences)


def markdown(entries: Iterable[Entry]) -> str:
    """Formats the worst of each kernel on each target, over all its cases."""
    groups: defaultdict[tuple[str, str], list[Entry]] = defaultdict(list)
    for entry in entries:
        groups[entry["kernel"], entry["target"]].append(entry)
    lines = [
        "| kernel | target | compiled | most registers | spills | most shared bytes | matrix instructions | laws |",
        "|---|---|---:|---:|---:|---:|---|---|",
    ]
    for (kernel, target), group in groups.items():
        read = [entry for entry in group if "error" not in entry]
        used = sorted({name for entry in read for name in entry["instructions"] if entry["instructions"][name]})
        most = {key: max((entry[key] for entry in read), default=0) for key in ("registers", "spills", "shared")}
        broken = sum(bool(broken_by(entry)) for entry in group)
        excused = any("exception" in entry for entry in group)
        verdict = f"{broken} broken" if broken else "held, by exception" if excused else "held"
        lines.append(
            f"| {kernel} | {target} | {len(group)} | {most['registers']} | {most['spills']} | {most['shared']} "
            f"| {', '.join(used) or '–'} | {verdict} |"
        )
    return "\n".join(lines)


def detail(entries: Iterable[Entry]) -> str:
    """Formats every entry on its own, for choosing tiles."""
    lines: list[str] = []
    for entry in entries:
        lines.append(f"{title(entry)} num_warps={entry['num_warps']} num_stages={entry['num_stages']}")
        if "error" not in entry:
            counts = " ".join(f"{name}={count}" for name, count in entry["instructions"].items() if count)
            lines.append(
                f"  registers={entry['registers']} spills={entry['spills']} stack={entry['stack']} "
                f"shared={entry['shared']} {counts}"
            )
            if entry["dots"]:
                by = " ".join(f"{kind}={count}" for kind, count in entry["operands"].items())
                lines.append(f"  operands by {by}; loops to be fused: {entry['flattened']}")
        if "exception" in entry:
            lines.append(f"  exception: {entry['exception']}")
        lines += [f"  BROKEN: {sentence}" for sentence in broken_by(entry)]
    return "\n".join(lines)


def title(entry: Entry) -> str:
    """Names the piece of code that an entry is about; no two entries of a table have the same name."""
    constants = ",".join(f"{name}={value}" for name, value in entry["constants"].items())
    variant = f" #{entry['variant']}" if entry["variant"] else ""
    cases, dtypes = ", ".join(entry["cases"]), "/".join(entry["dtypes"])
    return f"{entry['kernel']}{variant} {entry['target']} {dtypes} [{cases}] ({constants})"
