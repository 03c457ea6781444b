"""A pretrained run, loaded: embeddings, local scores and routing of a split."""
