"""A report with one finding's name in the place of another's: what the map of an absent finding is made from."""

from collections.abc import Sequence


def renamed(text: str, words: Sequence[str], places: Sequence[int], name: str) -> str | None:
    """Puts another name wherever a finding is named.

    Args:
        text: The report.
        words: Its words, as they stand in it, in order; those cut off are left out.
        places: Places of the words that name the finding, ascending.
        name: What to write instead of each run of such words.

    Returns:
        The report with ``name`` for each run of neighbouring words at ``places``; ``None`` where a word does not stand
        in the text, because a tokenizer changed more of it than its case.
    """
    spans: list[tuple[int, int]] = []
    at, folded = 0, text.lower()
    for word in words:
        start = folded.find(word.lower(), at)
        if start < 0 or len(folded) != len(text):
            return None
        at = start + len(word)
        spans.append((start, at))
    runs: list[list[int]] = []
    for place in places:
        if runs and place == runs[-1][-1] + 1:
            runs[-1].append(place)
        else:
            runs.append([place])
    for run in reversed(runs):
        text = text[: spans[run[0]][0]] + name + text[spans[run[-1]][1] :]
    return text
