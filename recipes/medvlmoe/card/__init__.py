"""The model card of a run: what it was trained on, how well it does, what it is for and what not."""

from recipes.medvlmoe.card.write import CARD, write_card

__all__ = ["CARD", "write_card"]
