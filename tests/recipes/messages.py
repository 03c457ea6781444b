"""Arguments of readers that a message spells as in Python."""

import inspect
import re

from recipes.data.chest.options import ChestOptions
from recipes.data.evaluation.sets import SETS, set_options
from recipes.data.medmnist.npz import medmnist_source
from recipes.data.tables.pairs import pair_manifest_source
from recipes.data.tables.studies import manifest_source
from recipes.data.tars.shards import shard_source

_READERS = (manifest_source, pair_manifest_source, shard_source, medmnist_source)
ARGUMENTS = {name for reader in _READERS for name in inspect.signature(reader).parameters}
ARGUMENTS |= {*ChestOptions._fields, *(name for known in SETS for name in set_options(known))}
_WITH_UNDERSCORE = "|".join(sorted(name for name in ARGUMENTS if "_" in name))


def python_names(message: str) -> list[str]:
    """Returns the arguments that no flag and no ``--options`` names, and values written as in Python."""
    message = re.sub(r"--options \w+=", "", message)
    named = re.findall(rf"(?<![\w./-])(?:{_WITH_UNDERSCORE})\b(?!\.)", message)
    return named + re.findall(r"\b[a-z_]+=(?:'[a-z-]+'|True|False|None)", message)
