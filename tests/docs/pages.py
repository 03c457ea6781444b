"""The pages of the documentation, and the fenced blocks in them."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
    + [path for folder in ("docs", "kernels", "recipes", "benchmarks") for path in (ROOT / folder).rglob("*.md")]
)
FENCE = re.compile(r"^( *)```([\w-]*)[^\n]*\n(.*?)^\1```\s*$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block and the line on which it begins."""

    language: str
    text: str
    line: int


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    matches = FENCE.finditer(text)
    return [
        Block(m[2], re.sub(f"^{m[1]}", "", m[3], flags=re.MULTILINE), text[: m.start()].count("\n") + 1)
        for m in matches
    ]


def commands_of(page: Path) -> Iterator[list[str]]:
    for block in blocks_of(page):
        if block.language == "bash":
            for line in block.text.replace("\\\n", " ").splitlines():
                if words := shlex.split(line, comments=True):
                    yield words


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()
