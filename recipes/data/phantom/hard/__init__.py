"""The harder edition: the note names the place that counts, and what a pattern there means depends on the note."""
