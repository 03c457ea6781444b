"""Prompt files: the texts that stand for the classes of a set, and seeded draws from them."""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parent / "prompts"

TEMPLATES = ("{}", "an image of {}", "an image showing {}", "a medical image with {}", "findings consistent with {}")
"""Used only where the caller asks for templates, for sets without a prompt file."""

KEYS = ("classes", "absent")


@dataclass(frozen=True)
class Prompts:
    """Texts for and against each class.

    Attributes:
        name: Where they come from: the name of a file of this recipe, a path, or another word.
        classes: Texts that fit each class, in order.
        absent: Texts that deny each class, where there are any; for the scoring ``pairs``.
    """

    name: str
    classes: Mapping[str, tuple[str, ...]]
    absent: Mapping[str, tuple[str, ...]]

    def to_json(self) -> dict[str, Any]:
        """Returns the prompts as plain types, in the form of a prompt file."""
        parts = {"classes": self.classes, "absent": self.absent}
        return {key: {name: list(texts) for name, texts in part.items()} for key, part in parts.items()}


def prompt_files() -> list[str]:
    """Lists the names of the prompt files of this recipe."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def load_prompts(name: str | Path) -> Prompts:
    """Reads a prompt file.

    The form is ``{"classes": {NAME: [TEXT, ...]}, "absent": {NAME: [TEXT, ...]}}``, the second part optional.

    Args:
        name: A name of :func:`prompt_files`, or the path of a file that ends in ``.json``.

    Returns:
        Its prompts.

    Raises:
        ValueError: If there is no such file, it is no json, or not of that form.
    """
    path = Path(name) if str(name).endswith(".json") else FOLDER / f"{name}.json"
    if not path.is_file():
        raise ValueError(
            f"prompts: there is no prompt file {str(name)!r}. Give the path of a .json file, or one of "
            f"{', '.join(prompt_files())} (--prompts)."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_no_doubles)
    except ValueError as error:
        raise ValueError(f"prompts: {str(name)!r} is no valid json: {error}.") from error
    return parse_prompts(content, str(name))


def parse_prompts(content: Any, name: str) -> Prompts:
    """Checks what a prompt file holds; see :func:`load_prompts`.

    Args:
        content: What json gave, or a dict of that form.
        name: Where it comes from, for errors and results.

    Raises:
        ValueError: If it is not of that form.
    """
    if not isinstance(content, dict) or "classes" not in content or set(content) - set(KEYS):
        got = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise ValueError(
            f'prompts: {name!r} must hold an object with "classes" and at most "absent" beside it, got {got}.'
        )
    classes, absent = (_texts(content.get(key, {}), key, name) for key in KEYS)
    if not classes:
        raise ValueError(f'prompts: {name!r} has no class. Write "classes": {{NAME: [TEXT, ...], ...}}.')
    unknown = sorted(set(absent) - set(classes))
    if unknown:
        raise ValueError(f'prompts: {name!r} names {unknown} under "absent", which are none of its classes.')
    return Prompts(name, classes, absent)


def template_prompts(classes: Sequence[str]) -> Prompts:
    """Puts class names into plain sentences: a fallback that the caller must ask for.

    Args:
        classes: Names of the classes.
    """
    plain = {name: name.replace("_", " ") for name in classes}
    return Prompts("templates", {name: tuple(t.format(plain[name]) for t in TEMPLATES) for name in classes}, {})


def choose_prompts(
    prompts: Prompts, classes: Sequence[str] | None = None, *, count: int | None = None, seed: int = 0
) -> Prompts:
    """Takes the prompts of some classes, and draws an ensemble of them.

    Each class draws from a stream of its own, named by the seed and the class, so neither the order of the
    classes nor the presence of others changes a draw. What is drawn keeps the order of the file.

    Args:
        prompts: All prompts.
        classes: Classes to take, in this order; all by default. Names are compared without regard to case,
            hyphens and underscores.
        count: Prompts per class; all by default. The texts against a class are drawn likewise, or all taken
            where there are fewer.
        seed: Names the streams.

    Returns:
        The chosen prompts, under the names given.

    Raises:
        ValueError: If a class has no prompts, or fewer than ``count``, or ``count`` is below 1.
    """
    if count is not None and count < 1:
        raise ValueError(f"count must be at least 1 prompt per class, or None for all, got {count} (--count).")
    known = {_plain(name): name for name in prompts.classes}
    names = list(prompts.classes) if classes is None else list(classes)
    missing = [name for name in names if _plain(name) not in known]
    if missing:
        raise ValueError(
            f"prompts: {prompts.name!r} has no prompts for the classes {missing}; it has {list(prompts.classes)}. "
            "Add them, or give another file (--prompts)."
        )
    chosen: dict[str, tuple[str, ...]] = {}
    against: dict[str, tuple[str, ...]] = {}
    for name in names:
        texts = prompts.classes[known[_plain(name)]]
        if count is not None and len(texts) < count:
            raise ValueError(
                f"count: {count} prompts per class asked for, but {prompts.name!r} has {len(texts)} for {name!r} "
                "(--count)."
            )
        chosen[name] = _draw(texts, count, seed, f"for {_plain(name)}")
        if known[_plain(name)] in prompts.absent:
            denials = prompts.absent[known[_plain(name)]]
            against[name] = _draw(denials, count, seed, f"against {_plain(name)}")
    return Prompts(prompts.name, chosen, against)


def _draw(texts: tuple[str, ...], count: int | None, seed: int, stream: str) -> tuple[str, ...]:
    if count is None or count >= len(texts):
        return texts
    rng = np.random.default_rng([seed, zlib.crc32(stream.encode())])
    return tuple(texts[i] for i in sorted(rng.choice(len(texts), size=count, replace=False)))


def _plain(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


def _texts(part: Any, key: str, name: str) -> dict[str, tuple[str, ...]]:
    if not isinstance(part, dict):
        raise ValueError(f"prompts: {key!r} of {name!r} must map names of classes to lists of texts, got {part!r}.")
    for one, texts in part.items():
        if not isinstance(texts, list | tuple) or not texts:
            raise ValueError(
                f"prompts: {name!r} must give {one!r} a list of at least one text in {key!r}, got {texts!r}."
            )
        wrong = [text for text in texts if not isinstance(text, str) or not text.strip()]
        if wrong:
            raise ValueError(
                f"prompts: {name!r} must give {one!r} texts that are not empty in {key!r}, got {wrong[0]!r}."
            )
    twice = sorted({one for one in part if [_plain(other) for other in part].count(_plain(one)) > 1})
    if twice:
        raise ValueError(f"prompts: {name!r} must name each class once in {key!r}, but {twice} are the same name.")
    return {one: tuple(texts) for one, texts in part.items()}


def _no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise ValueError(f"the keys {twice} come more than once")
    return dict(pairs)
