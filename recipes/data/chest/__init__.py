"""Public sets of chest radiographs, read for training from folders as they are distributed."""
