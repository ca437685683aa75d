"""Sequential trees, the default model of tables."""
