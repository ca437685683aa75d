"""Train a model, sample from it, filter what it drew."""
