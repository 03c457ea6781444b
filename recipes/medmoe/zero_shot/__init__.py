"""Zero-shot classification. Start reading at ``stage``."""
