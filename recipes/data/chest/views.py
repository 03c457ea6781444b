"""Keeps the radiographs of some views."""

from collections import Counter
from collections.abc import Sequence

from recipes.data.arguments import argument

_KINDS = {
    "frontal": frozenset({"AP", "PA", "AP AXIAL", "PA LLD", "PA RLD", "AP LLD", "AP RLD", "FRONTAL"})
    | {"FRONTAL LL", "FRONTAL RL"},
    "lateral": frozenset({"LATERAL", "LL", "RL", "XTABLE LATERAL", "SWIMMERS"}),
}


def rows_of_views(cells: Sequence[str], views: Sequence[str], where: str) -> list[int]:
    """Lists the rows whose view is one of those asked for.

    Args:
        cells: View of each row.
        views: Names as the set writes them, or ``frontal`` and ``lateral``, in any case; all rows without any.
        where: The file, for the message.

    Raises:
        ValueError: If no row has one of a view's names; the message lists the views that occur.
    """
    if not views:
        return list(range(len(cells)))
    names = {cell: cell.strip().upper() for cell in dict.fromkeys(cells)}
    accepted_names: set[str] = set()
    for view in views:
        accepted = _KINDS.get(view.strip().lower(), {view.strip().upper()})
        if not accepted & set(names.values()):
            counts = Counter(cells)
            listed = ", ".join(f"{name or 'blank'} ({count})" for name, count in counts.most_common(10))
            raise ValueError(
                f"{argument('views')}: no row of {where} has the view {view!r}. It has {listed}: name some of "
                "these, frontal or lateral."
            )
        accepted_names |= accepted
    kept = {cell for cell, name in names.items() if name in accepted_names}
    return [row for row, cell in enumerate(cells) if cell in kept]
