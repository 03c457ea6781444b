"""Word maps, scale weights and the pointing game. Start reading at ``stage``.

``seen`` runs the model over studies, ``word_maps`` makes the maps, ``pointing`` and ``game`` play the pointing game of
one finding and of a split, ``examples`` chooses and keeps studies, ``pictures`` draws them.
"""
