"""Labelled sets that a pretrained model is evaluated on."""
