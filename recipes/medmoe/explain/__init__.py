"""Word maps, scale weights and the pointing game. Start reading at ``stage``."""
