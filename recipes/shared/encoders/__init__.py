"""Image and text encoders, from a hub, a local folder or from scratch."""
