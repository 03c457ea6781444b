"""Whether ``experts_implementation="moekit"`` gives what eager gives, for every family of ``transformers``."""
