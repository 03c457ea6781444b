"""Reads image-text pairs from a csv: one row per pair, with its modality, split and group. No labels."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from recipes.data.arguments import argument
from recipes.data.image_files import ImageFiles, OnBadImage, some_of
from recipes.data.pairs import PairSource
from recipes.data.studies import check_splits_apart
from recipes.data.tables.columns import modality_name
from recipes.data.tables.csv_file import read_table
from recipes.data.tables.labels import check_choice
from recipes.data.tables.rows import Layout, divide, read_rows
from recipes.data.tables.text_columns import text_columns

OnMissingText = Literal["error", "skip"]

FEW_WORDS = 1.5
"""Texts that have fewer words on average and mostly repeat look like names of classes."""


def pair_manifest_source(
    csv: str | Path,
    *,
    image_column: str = "image",
    text_column: str = "text",
    modality_column: str | None = "modality",
    modality: str | None = None,
    split_column: str | None = "split",
    group_column: str | None = None,
    image_root: str | Path | None = None,
    on_bad_image: OnBadImage = "error",
    force_dicom: bool = False,
    on_missing_text: OnMissingText = "error",
    seed: int = 0,
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2),
    name: str | None = None,
) -> PairSource:
    """Reads a csv of images and texts into train, val and test.

    An image may be listed several times with different texts (several captions): each row is a pair of its own,
    and from the second on its id is the image's with ``#2``, ``#3``, ... behind it. All rows of an image must be
    in one split and agree in group and modality. Rows are counted from 1, the first under the header.

    Args:
        csv: The table: comma-separated, UTF-8, a header row; ``.csv.gz`` works too.
        image_column: Path of the image, absolute or below ``image_root``.
        text_column: Report, note or caption.
        modality_column: Kind of the image (``xray``, ``ct``, ...), kept in lower case; a blank cell means that it
            is not known. ``None``: it is known of no pair.
        modality: Of pairs whose row names none.
        split_column: Column of train, val (valid, validation) and test, in any case. ``None`` draws a split by
            group (`recipes.data.splits.draw_splits`).
        group_column: The patient, or whatever must not cross splits. ``None``: every image is its own.
        image_root: Folder of the images, by default the csv's.
        on_bad_image: ``"error"`` refuses missing and empty files at once and damaged ones when they are read.
            ``"skip"`` opens every file now, leaves the bad ones out and counts them in ``notes``.
        force_dicom: Whether DICOM files without preamble and file meta group are read.
        on_missing_text: ``"error"`` refuses a blank text; ``"skip"`` leaves such rows out and counts them in
            ``notes``.
        seed: Of the drawn split.
        fractions: Shares of train, val and test in the drawn split.
        name: Of the source, by default the csv's name without its ending.

    Returns:
        A source whose splits hold at least one pair each and share no group. Its studies have labels of shape
        ``(0,)``. Its notes say so if other columns seem to hold texts too, or the chosen one none.

    Raises:
        ValueError: For a missing or unreadable csv, a column it lacks, a cell that cannot be read, a blank text,
            the same pair twice, an image in two splits, missing images, an empty split, or a group in two
            splits. The message names the file and the column, row or image.
        ImportError: If Pillow is not installed.
    """
    check_choice("on_bad_image", on_bad_image, OnBadImage)
    check_choice("on_missing_text", on_missing_text, OnMissingText)
    layout = Layout(
        csv=Path(csv),
        image_column=image_column,
        text_column=text_column,
        modality_column=modality_column,
        split_column=split_column,
        group_column=group_column,
        image_root=image_root,
        on_bad_image=on_bad_image,
        force_dicom=force_dicom,
        seed=seed,
        fractions=fractions,
    )
    studies, row_splits = read_rows(layout, read_table(layout.csv, layout.columns(), arguments=layout.arguments()))
    if modality is not None:
        own = tuple(modality_name(modality) if each is None else each for each in studies.modalities)
        studies = replace(studies, modalities=own)
    studies = _captions_apart(studies, row_splits, layout)
    studies, row_splits, missing = _with_texts(studies, row_splits, layout, skip=on_missing_text == "skip")
    parts, notes = divide(layout, studies, row_splits)
    name = name or layout.stem()
    check_splits_apart(name, parts.items())
    occurring = [modality for split in parts.values() for modality in split.modalities]
    known = {modality for modality in occurring if modality is not None}
    if modality_column is not None and None in occurring:
        notes.append(f"the modality of {occurring.count(None)} of {len(occurring)} pairs is not known")
    return PairSource(name, tuple(sorted(known)), **parts, notes=(*missing, *notes, *_about_texts(layout, studies)))


def _about_texts(layout: Layout, studies: ImageFiles) -> list[str]:
    """Says so where the column of texts seems to hold none, or other columns seem to hold texts too."""
    name = str(layout.text_column)
    others = text_columns(layout.csv, {*layout.columns(), name})
    listed = ", ".join(map(repr, others))
    texts = [text for text in studies.texts if text is not None]
    if len(set(texts)) < len(texts) / 2 and sum(len(text.split()) for text in texts) < FEW_WORDS * len(texts):
        remedy = f"columns that seem to hold texts: {listed}" if others else "name the column of reports"
        seems = "seems to hold names or codes"
        return [f"the column {name!r} is read as the text, but {seems}; {remedy} ({argument('text_column')})"]
    if others:
        where = argument("text_column")
        return [f"the column {name!r} is read as the text; {listed} seem to hold texts too ({where})"]
    return []


def _captions_apart(studies: ImageFiles, splits: Sequence[str] | None, layout: Layout) -> ImageFiles:
    """Gives the captions of one image different ids, and checks that its rows agree."""
    rows_of: dict[str, list[int]] = {}
    for row, path in enumerate(studies.paths):
        rows_of.setdefault(path, []).append(row)
    ids, groups = list(studies.ids), list(studies.groups)
    for path, rows in rows_of.items():
        first = rows[0]
        for number, row in enumerate(rows[1:], 2):
            both = f"{layout.csv}: rows {first + 1} and {row + 1} both list the image {path!r}"
            if splits is not None and splits[first] != splits[row]:
                raise ValueError(f"{both}, in different splits ({splits[first]} and {splits[row]})")
            if layout.group_column is not None and groups[first] != groups[row]:
                raise ValueError(f"{both}, in different groups ({groups[first]!r} and {groups[row]!r})")
            modalities = studies.modalities[first], studies.modalities[row]
            if modalities[0] != modalities[1]:
                raise ValueError(f"{both}, with different modalities ({modalities[0]!r} and {modalities[1]!r})")
            ids[row] = f"{ids[first]}#{number}"
            # Without a column of groups, an image written in two ways is still one group.
            groups[row] = groups[first]
        _check_texts_differ(studies, rows, str(layout.csv))
    return replace(studies, ids=tuple(ids), groups=tuple(groups))


def _check_texts_differ(studies: ImageFiles, rows: Sequence[int], where: str) -> None:
    """Refuses the same pair twice: it would be its own false negative."""
    first: dict[str, int] = {}
    for row in rows:
        text = studies.texts[row]
        if text is not None and first.setdefault(text, row) != row:
            raise ValueError(
                f"{where}: rows {first[text] + 1} and {row + 1} list the same image {studies.paths[row]!r} with the "
                "same text: remove one, or give each row a text of its own"
            )


def _with_texts(
    studies: ImageFiles, row_splits: list[str] | None, layout: Layout, *, skip: bool
) -> tuple[ImageFiles, list[str] | None, list[str]]:
    """Leaves rows without a text out, or refuses them; returns what is left and notes."""
    blank = [row for row, text in enumerate(studies.texts) if text is None]
    if not blank:
        return studies, row_splits, []
    where, of = f"{layout.csv}: column {layout.text_column!r}", f"{len(blank)} of {len(studies)} rows"
    if len(blank) == len(studies):
        raise ValueError(
            f"{where} is blank in every row, but a pair needs a text. Name the column that holds it "
            f"({argument('text_column')})."
        )
    if not skip:
        raise ValueError(
            f"{where}, row {blank[0] + 1} is blank, but a pair needs a text ({of} have none). "
            f"Fill it, or pass {argument('on_missing_text', 'skip')} to leave such rows out."
        )
    kept = [row for row in range(len(studies)) if studies.texts[row] is not None]
    note = f"skipped {of} that have no text: {some_of(studies.ids, blank)}"
    return studies.take(kept), None if row_splits is None else [row_splits[row] for row in kept], [note]
