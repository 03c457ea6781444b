"""Balance of ranks with experts placed by their past loads, simulated."""
