"""Which experts of MedVLMoE live on small real sets, with a balancing loss and with a fitted selection bias."""
