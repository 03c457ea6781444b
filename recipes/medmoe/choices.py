"""Words that the options of several stages choose among; nothing heavy is imported, so that ``--help`` is quick."""

from typing import Literal

Scoring = Literal["combined", "mean", "max", "pairs", "gloria"]
"""How zero-shot scores are computed, see `recipes.medmoe.zero_shot.scoring`."""

LOCAL_SCORINGS = ("combined", "gloria")
"""Scorings that compare words with regions, which depend on the expert."""

Features = Literal["global", "local", "both"]
"""What a linear probe reads: the encoder's pooled output, the mean over the chosen expert's regions, or both."""

Refit = Literal["train", "train+val"]
"""What the last classifier of a probe is fitted on: the subset alone, or the subset with the validation set."""

Select = Literal["val", "subset"]
"""What chooses the weight decay of a probe: the validation set, or cross-validation inside the subset."""

Split = Literal["train", "val", "test"]
"""The three splits of a set."""

Checkpoint = Literal["best", "last"]
"""Which weights of a run: of the epoch with the lowest validation loss, or of the last one."""

NearDuplicates = Literal["count", "leave-out", "ignore"]
"""What happens with evaluation images that are equal or nearly equal to pretraining images."""
