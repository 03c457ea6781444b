"""Reads images to predict, with their texts, by the rules of the tables that a run was trained on."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from recipes.data.image_files import ImageFiles, file_reader
from recipes.data.tables.csv_file import read_table
from recipes.data.tables.rows import Layout, check_images_exist, read_rows


def unlabelled_table(
    csv: str | Path,
    *,
    image_column: str,
    text_column: str | None,
    num_classes: int,
    image_root: str | Path | None = None,
    force_dicom: bool = False,
    blank_images: bool = False,
) -> ImageFiles:
    """Reads a csv of images and texts without labels, splits and groups.

    Args:
        csv: The table: comma-separated, UTF-8, a header row; ``.csv.gz`` works too.
        image_column: Path of the image, absolute or below ``image_root``. An image may be listed several times.
        text_column: Report or note; a blank cell means none. ``None``: no image has a text.
        num_classes: ``C``; all labels are NaN.
        image_root: Folder of the images, by default the csv's.
        force_dicom: Whether DICOM files without preamble and file meta group are read.
        blank_images: Whether a row with a text may have no image; its id is then ``row N``.

    Returns:
        The images, their paths as ids and groups.

    Raises:
        ValueError: For a missing or unreadable csv, one without rows, a column it lacks, a blank path, or images that
            are missing. The message names the file and the column, row or image.
    """
    layout = Layout(
        csv=Path(csv),
        image_column=image_column,
        text_column=text_column,
        image_root=image_root,
        force_dicom=force_dicom,
        blank_images=blank_images,
    )
    images, _ = read_rows(layout, read_table(layout.csv, layout.columns(), arguments=layout.arguments()))
    check_images_exist(images, layout, otherwise="remove such rows")
    ids = tuple(path or name for path, name in zip(images.paths, images.ids, strict=True))
    return replace(images, ids=ids, groups=ids, labels=_unknown(len(images), num_classes))


def unlabelled_images(
    paths: tuple[Path, ...], text: str | None, *, num_classes: int, force_dicom: bool = False
) -> ImageFiles:
    """Takes image files that share one text, or the text alone as a study without image.

    Args:
        paths: The files; none for the text alone.
        text: Report or note; blank means none.
        num_classes: ``C``; all labels are NaN.
        force_dicom: Whether DICOM files without preamble and file meta group are read.
    """
    names = tuple(map(str, paths)) or ("text",)
    return ImageFiles(
        ids=names,
        paths=names if paths else ("",),
        details=((),) * len(names),
        labels=_unknown(len(names), num_classes),
        groups=names,
        texts=(text.strip() or None if text else None,) * len(names),
        modalities=(None,) * len(names),
        read=file_reader(force_dicom),
    )


def _unknown(count: int, num_classes: int) -> np.ndarray:
    return np.full((count, num_classes), np.nan, np.float32)
