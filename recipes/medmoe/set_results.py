"""The results of a stage by labelled set: ``RUN/STAGE/SET.json``, each with the table that it is of."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from recipes.shared.runs import read_object, write_json


class SetResults:
    """Writes the results of one call. A result of another table, or of a set, with the same name stays.

    Args:
        folder: Where they go; made with the first one.
        csv: The table of the call; ``None`` for named sets.
        options: The options of its reader.
    """

    def __init__(self, folder: Path, csv: Path | None, options: Sequence[str]) -> None:
        self._folder = folder
        self._origin = None if csv is None else {"csv": str(csv.resolve()), "options": sorted(options)}

    def check(self, names: Iterable[str]) -> None:
        """Refuses sets whose names have results of something else.

        Args:
            names: Of the sets.

        Raises:
            ValueError: If a file holds the result of something else; the message says how to name this one.
        """
        for name in names:
            path = self._path(name)
            if not path.is_file():
                continue
            kept = read_object(path).get("origin")
            if kept != self._origin:
                raise ValueError(
                    f"{path} holds the result of {_in_words(kept)}: give this one a name of its own (--name), or "
                    "remove the file."
                )

    def write(self, name: str, result: Mapping[str, Any]) -> None:
        """Writes the result of a set, and which table it is of.

        Args:
            name: Of the set.
            result: What is written.
        """
        self._folder.mkdir(exist_ok=True)
        write_json(self._path(name), {**result, "origin": self._origin})

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.json"


def _in_words(origin: Mapping[str, Any] | None) -> str:
    return "a set of this name" if origin is None else f"{origin['csv']} with options {origin['options'] or 'none'}"
