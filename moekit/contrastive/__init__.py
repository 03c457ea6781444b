"""Contrastive losses between images and texts: whole images with whole texts, and regions with words."""

from moekit.contrastive.attention import attention_maps
from moekit.contrastive.global_loss import global_contrastive_loss
from moekit.contrastive.local_loss import LocalContrast, local_contrastive_loss
from moekit.contrastive.scores import local_scores
from moekit.contrastive.word_alignment import WordAlignment, word_alignment_loss
from moekit.contrastive.words import WordStates, aggregate_word_pieces

__all__ = [
    "LocalContrast",
    "WordAlignment",
    "WordStates",
    "aggregate_word_pieces",
    "attention_maps",
    "global_contrastive_loss",
    "local_contrastive_loss",
    "local_scores",
    "word_alignment_loss",
]
