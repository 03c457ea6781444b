"""Where the experts of MedVLMoE help: scores with and without them on harder and harder drawn data."""
