"""Opens a set of chest radiographs by its name."""

from collections.abc import Callable
from pathlib import Path

from recipes.data.arguments import argument
from recipes.data.chest.chestxray14 import chestxray14_source
from recipes.data.chest.chexpert import chexpert_source
from recipes.data.chest.mimic_cxr import mimic_cxr_source
from recipes.data.chest.openi import openi_source
from recipes.data.chest.options import ChestOptions
from recipes.data.studies import StudySource

CHEST_SETS: dict[str, Callable[[str | Path, ChestOptions], StudySource]] = {
    "chestxray14": chestxray14_source,
    "chexpert": chexpert_source,
    "mimic-cxr": mimic_cxr_source,
    "openi": openi_source,
}
"""The sets by name; each is given its folder as ``NAME:FOLDER``."""


def split_name(data: str) -> tuple[str, str] | None:
    """Splits ``NAME:FOLDER`` of a set; ``None`` if ``data`` does not begin with the name of one and a colon.

    Raises:
        ValueError: If the folder is left out.
    """
    name, colon, folder = data.partition(":")
    if name not in CHEST_SETS or (not colon and Path(data).exists()):
        return None
    if not folder:
        raise ValueError(f"{argument('data')}: {name} needs its folder, {name}:FOLDER")
    return name, str(Path(folder).expanduser())  # shells leave the ~ of NAME:~/FOLDER as it is
