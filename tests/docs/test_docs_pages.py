"""Every public name has a place in the documentation, every page and link leads somewhere."""

import re
from pathlib import Path
from typing import Any

import griffe
import pytest
from markdown.extensions.toc import slugify

import moekit
import moekit.contrastive
import moekit.fusion
import moekit.inspect
import moekit.interop
import moekit_kernels.combine
import moekit_kernels.grouped_gemm
import moekit_kernels.moe_ffn
import moekit_kernels.plan
import moekit_kernels.routing
from tests.docs.pages import FENCE, PAGES, ROOT, name_of

_SHAPE = re.compile(r'(?:Float|Int|Bool|Shaped)\[Tensor, "([^"]*)"\]')


def documented() -> set[str]:
    pages = (ROOT / "docs" / "api").glob("*.md")
    return {name for page in pages for name in re.findall(r"^::: ([\w.]+)", page.read_text(), re.MULTILINE)}


PACKAGES = [
    moekit,
    moekit.contrastive,
    moekit.fusion,
    moekit.inspect,
    moekit.interop,
    moekit_kernels.combine,
    moekit_kernels.grouped_gemm,
    moekit_kernels.moe_ffn,
    moekit_kernels.plan,
    moekit_kernels.routing,
]


@pytest.mark.parametrize("module", PACKAGES, ids=lambda module: module.__name__)
def test_every_public_name_has_a_place_on_an_api_page(module: Any) -> None:
    # A name of moekit.fusion may be documented as one of moekit's.
    places = (module.__name__, "moekit")
    missing = [
        name
        for name in module.__all__
        if not name.startswith("__") and not any(f"{place}.{name}" in documented() for place in places)
    ]
    assert not missing, f"no page in docs/api has '::: {module.__name__}.NAME' for {missing}"


@pytest.mark.parametrize("module", PACKAGES, ids=lambda module: module.__name__)
def test_no_module_has_the_name_of_a_public_name_beside_it(module: Any) -> None:
    # An API page would show the module in place of the function.
    beside = {path.stem for path in Path(module.__file__).parent.iterdir()}
    assert beside & set(module.__all__) == set()


def test_every_page_is_in_the_navigation() -> None:
    nav = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        assert re.search(rf"[ :-] {page.relative_to(ROOT / 'docs').as_posix()}$", nav, re.MULTILINE), page.name


def test_api_pages_show_shapes_as_they_are_written(tmp_path: Path) -> None:
    shapes = ['Float[Tensor, "T *D"]', 'Int[Tensor, "N"] | None', 'Int[Tensor, "E+1"]', 'Shaped[Tensor, "..."]']
    arguments = ", ".join(f"x{i}: {shape}" for i, shape in enumerate(shapes))
    (tmp_path / "shaped.py").write_text(
        f'def function({arguments}) -> list[Bool[Tensor, "T"]]:\n    """Has shapes."""\n'
    )
    extensions = griffe.load_extensions(str(ROOT / "docs" / "docstrings.py"))
    function = griffe.load("shaped", search_paths=[tmp_path], extensions=extensions)["function"]
    shown = [str(parameter.annotation).replace("'", '"') for parameter in function.parameters]
    assert shown == shapes
    assert str(function.returns) == "list[Bool[Tensor, 'T']]"


@pytest.mark.parametrize("folder", ["moekit", "kernels/moekit_kernels"])
def test_docstrings_are_markdown(folder: str) -> None:
    # The API pages show tables and directives of reStructuredText as they stand.
    foreign = re.compile(r"^\s*(?:={4,}[ =]*|\.\. \w+::.*)$", re.MULTILINE)
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    assert [file.name for file in files if foreign.search(file.read_text(encoding="utf-8"))] == []


def test_conventions_name_every_letter_of_the_shapes() -> None:
    table = (ROOT / "docs" / "conventions.md").read_text()
    letters = set()
    for folder in ("moekit", "kernels/moekit_kernels"):
        for file in (ROOT / folder).rglob("*.py"):
            for shape in _SHAPE.findall(file.read_text()):
                # A name in words, such as *slots, explains itself; +1 is a sum, and a lone digit a size.
                letters |= {m[1] for m in re.finditer(r"(?<!\w)\*?([A-Za-z]\d?)(?!\w)", shape)}
    assert {"T", "D", "E", "K"} <= letters
    missing = sorted(letter for letter in letters if not re.search(rf"`\"?[A-Z ]*\b{letter}\b", table))
    assert not missing, f"docs/conventions.md does not explain {missing}"


@pytest.mark.parametrize("name", ["layer.svg", "repository.svg"])
def test_pictures_have_texts_and_load_nothing(name: str) -> None:
    picture = (ROOT / "docs" / "assets" / name).read_text()
    assert "<title" in picture
    assert "<desc" in picture
    assert "http" not in picture.replace("http://www.w3.org/2000/svg", "")
    assert "prefers-color-scheme:dark" in picture


def test_the_picture_is_the_same_for_readers_of_the_source_and_of_the_pages() -> None:
    assert 'src="docs/assets/layer.svg"' in (ROOT / "README.md").read_text()
    assert "assets/layer.svg" in (ROOT / "docs" / "index.md").read_text()


# In capitals, with a star or an ellipsis, a path is a pattern.
_PATH = re.compile(r"`((?:moekit|kernels|recipes|benchmarks|tests|docs)/[a-z0-9_./-]*)`")


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=name_of)
def test_paths_named_in_the_text_exist(page: Path) -> None:
    missing = [path for path in _PATH.findall(page.read_text(encoding="utf-8")) if not (ROOT / path).exists()]
    assert not missing, f"{name_of(page)} names paths that do not exist: {missing}"


_LINK = re.compile(r"\]\(([^)#\s]*)(?:#([\w.-]*))?\)")
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


def anchors_of(page: Path) -> set[str]:
    text = page.read_text(encoding="utf-8")
    if included := re.match(r'--8<-- "(.*)"', text):
        return anchors_of(ROOT / included[1])
    text = FENCE.sub("", text)
    return {slugify(re.sub(r"[`*]|\]\([^)]*\)|\[", "", title), "-") for title in _HEADING.findall(text)}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files_and_headings_of_the_repository(page: Path) -> None:
    # MkDocs checks the pages of the site; README.md is none of them, and its readers see the repository.
    broken = []
    for path, anchor in _LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        target = page if not path else page.parent / path
        if "://" in path:
            continue
        if not target.exists() or (anchor and "." not in anchor and anchor not in anchors_of(target)):
            broken.append(f"{path}#{anchor}")
    assert not broken, f"{name_of(page)} has links that lead nowhere: {broken}"
