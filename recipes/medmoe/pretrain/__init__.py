"""Stage 1: pretraining. Start reading at ``stage``."""
