"""Whether moekit's blocks and experts give what those of ``transformers`` give, for every family."""
