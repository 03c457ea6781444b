"""Under which terms public data sets are distributed, for the card of a model that was trained on one.

They were written down by hand and may have changed: the publisher's own page holds.
"""

TERMS = {
    "chestxray14": "NIH Clinical Center: use is not restricted; cite the paper and acknowledge the NIH",
    "chexpert": "Stanford University data set research use agreement: non-commercial research, not to be passed on",
    "mimic-cxr": "PhysioNet credentialed health data licence 1.5.0: for credentialed users, not to be passed on",
    "openi": "CC BY-NC-ND 4.0",
    "dermamnist": "CC BY-NC 4.0",
    "phantom": "drawn by this repository, Apache-2.0",
}
"""By the name of the data set."""
_MEDMNIST = "CC BY 4.0"


def terms_of(name: str) -> str:
    """Returns the terms of a data set, or that they are not known here.

    Args:
        name: Of the data set, as in ``metrics.json``.
    """
    known = name.lower()
    if known in TERMS:
        return TERMS[known]
    for prefix, terms in TERMS.items():
        if known.startswith((f"{prefix}_", f"{prefix} ")):
            return terms
    if known.split("_")[0].endswith("mnist"):
        return _MEDMNIST
    return "not known here: ask where the data come from"
