"""Linear probing of frozen features. Start reading at ``stage``."""
