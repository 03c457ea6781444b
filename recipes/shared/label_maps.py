"""Which classes of one data set stand for the classes of another, for validation on data from elsewhere."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


def parse_label_map(
    entries: Sequence[str], trained: Sequence[str], external: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """Reads ``TRAINED=EXTERNAL`` entries; classes of the same name belong together without one.

    Args:
        entries: Each ``TRAINED=EXTERNAL``, or ``TRAINED=ONE|OTHER`` where any of several stands for the class, or
            ``TRAINED=`` to leave the class out.
        trained: Names of the classes that the model knows.
        external: Names of the classes of the other set.

    Returns:
        Trained class to classes of the other set, in the order of ``trained``; those without a counterpart are absent.

    Raises:
        ValueError: If an entry has no ``=``, names a class that is not there or comes twice, or no class has a
            counterpart.
    """
    chosen: dict[str, tuple[str, ...]] = {}
    for entry in entries:
        name, equals, counterparts = entry.partition("=")
        if not equals:
            raise ValueError(f"label_map (--label-map) takes entries TRAINED=EXTERNAL, got {entry!r}.")
        if name in chosen:
            raise ValueError(f"label_map (--label-map) names the class {name!r} twice. Join its counterparts by |.")
        others = tuple(part for part in counterparts.split("|") if part)
        for what, names, known in (("trained", (name,), trained), ("external", others, external)):
            unknown = [one for one in names if one not in known]
            if unknown:
                raise ValueError(
                    f"label_map (--label-map): {unknown[0]!r} in {entry!r} is no {what} class; there are {list(known)}."
                )
        chosen[name] = others
    same = {other.lower(): other for other in external}
    for name in trained:
        if name not in chosen and name.lower() in same:
            chosen[name] = (same[name.lower()],)
    result = {name: chosen[name] for name in trained if chosen.get(name)}
    if not result:
        raise ValueError(
            f"no class has a counterpart: the run knows {list(trained)}, the other set {list(external)}. Say which "
            "belong together: --label-map TRAINED=EXTERNAL."
        )
    return result


def map_labels(
    labels: ArrayLike, external: Sequence[str], label_map: Mapping[str, Sequence[str]]
) -> NDArray[np.float64]:
    """Translates labels: 1 if any counterpart is present, 0 if all are absent, else unknown.

    Args:
        labels: Shape ``(N, C')``: 1, 0 or NaN for unknown.
        external: Names of their ``C'`` classes.
        label_map: What :func:`parse_label_map` returned, of ``C`` classes.

    Returns:
        Shape ``(N, C)``.
    """
    values = np.asarray(labels, np.float64)
    columns = []
    for others in label_map.values():
        part = values[:, [list(external).index(name) for name in others]]
        absent_or_unknown = np.where(np.isnan(part).any(axis=1), np.nan, 0.0)
        columns.append(np.where((part == 1).any(axis=1), 1.0, absent_or_unknown))
    return np.stack(columns, axis=1)
