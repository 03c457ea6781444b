"""A real training step of MedVLMoE at the paper's size, with random weights and drawn tensors."""
