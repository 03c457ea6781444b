"""Publishes pages that stand beside the code: the benchmark results, the derivations of the kernels.

A page of ``docs/`` links to them as they lie in the repository, ``../benchmarks/README.md``, so that the link works
for readers of the source too; on the site the same path begins at its root.
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PATTERNS = (
    "benchmarks/**/*.md",
    "benchmarks/results/**/*.svg",
    "benchmarks/results/**/*.png",
    "kernels/moekit_kernels/*/README.md",
    "recipes/**/*.md",
)
_OUT_OF_DOCS = re.compile(r"\]\(\.\./(?=(?:benchmarks|kernels|recipes)/)")
_INTO_DOCS = re.compile(r"\]\(((?:\.\./)+)docs/")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the files that match the patterns, at their paths in the repository."""
    for pattern in PATTERNS:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Adapts links between ``docs/`` and the pages beside the code: on the site ``docs/`` is the root."""
    return _INTO_DOCS.sub(r"](\1", _OUT_OF_DOCS.sub("](", markdown))
