"""Stage 1: pretraining. Start reading at ``stage``.

``objective`` holds the losses, ``tally`` their means over an epoch, ``summary`` what ``metrics.json`` holds of the run.
"""
