"""How a set of chest radiographs is read, whichever it is."""

from typing import NamedTuple

from recipes.data.image_files import OnBadImage
from recipes.data.tables.labels import Blank, Uncertain


class ChestOptions(NamedTuple):
    """Choices of the user.

    Attributes:
        views: Views that are kept, as the set writes them (``AP``, ``PA``, ``LATERAL``, ...) or ``frontal`` and
            ``lateral``, in any case; all without any.
        uncertain: What a label of -1 becomes.
        blank: What a blank label becomes; ``None`` is ``"zeros"``: a finding that a report does not mention is
            absent, as the papers of these sets take it.
        official_splits: Whether the set's own splits are used; otherwise splits are drawn by patient.
        texts: Whether reports are read, where the set has them.
        on_bad_image: What to do about files that cannot be read.
        force_dicom: Whether DICOM files without preamble and file meta group are read.
        allow_crossing: Whether a patient may lie in two splits; only to list them.
        seed: Of drawn splits.
        fractions: Shares of train, val and test in drawn splits; where only validation is drawn, it gets the share that
            the first two give it.
    """

    views: tuple[str, ...] = ()
    uncertain: Uncertain = "ignore"
    blank: Blank | None = None
    official_splits: bool = True
    texts: bool = True
    on_bad_image: OnBadImage = "error"
    force_dicom: bool = False
    allow_crossing: bool = False
    seed: int = 0
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)

    def blank_labels(self) -> Blank:
        """Returns what a blank label becomes."""
        return "zeros" if self.blank is None else self.blank
