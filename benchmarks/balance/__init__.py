"""Balance of the experts in a small language model: with an auxiliary loss, with a selection bias, and with neither."""
