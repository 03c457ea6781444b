"""Images of one's own: files, folders, or a table."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from recipes.data.image_files import ImageFiles, OnBadImage, problems, some_of
from recipes.data.image_folders import image_files
from recipes.data.images.read import image_problem
from recipes.data.tables.unlabelled import unlabelled_images, unlabelled_table


@dataclass(frozen=True)
class Images:
    """Where images are; no labels are read."""

    image: tuple[Path, ...] = ()
    """Image files, or folders of them; or give --csv."""
    csv: Path | None = None
    """Table with a column of paths."""
    image_column: str = "image"
    """Its column of images."""
    text_column: str | None = None
    """Its column of texts, where they are used."""
    image_root: Path | None = None
    """Folder at which the paths in the table begin, by default the table's."""
    on_bad_image: OnBadImage = "error"
    """Whether an image that cannot be read stops the command, or is left out and named."""
    force_dicom: bool = False
    """Read DICOM files without preamble and file meta group; always if the run does."""

    def open(self, *, force_dicom: bool = False) -> ImageFiles:
        """Opens the images.

        Args:
            force_dicom: Whether the run reads DICOM files without preamble.

        Raises:
            ValueError: If files and a table are given or neither, a path does not exist, the table lacks a column, or
                no image is left.
        """
        if bool(self.image) == (self.csv is not None):
            raise ValueError("give images or a table of them: --image FILES OR FOLDERS, or --csv TABLE.")
        force = self.force_dicom or force_dicom
        if self.csv is not None:
            columns = {"image_column": self.image_column, "text_column": self.text_column}
            files = unlabelled_table(self.csv, **columns, image_root=self.image_root, num_classes=0, force_dicom=force)
        else:
            if self.text_column is not None or self.image_root is not None:
                raise ValueError("--text-column and --image-root belong to a table: leave them out with --image.")
            files = unlabelled_images(tuple(image_files(self.image)), None, num_classes=0, force_dicom=force)
        return files if self.on_bad_image == "error" else _readable(files, force)


OwnImages = Annotated[Images, tyro.conf.arg(name="", prefix_name=False)]
"""Type of the argument of a command that reads images: their options have no prefix."""

NO_IMAGES = Images()
"""The default: none are named."""


def _readable(files: ImageFiles, force_dicom: bool) -> ImageFiles:
    """Leaves out images that cannot be read, and prints which."""
    bad = problems(len(files), lambda row: image_problem(files.paths[row], force_dicom=force_dicom))
    if not bad:
        return files
    named = some_of(files.paths, list(bad))
    if len(bad) == len(files):
        raise ValueError(f"none of the {len(files)} images can be read: {named}; the first: {next(iter(bad.values()))}")
    print(f"left out: {len(bad)} of {len(files)} images that cannot be read: {named}")
    return files.take([row for row in range(len(files)) if row not in bad])
