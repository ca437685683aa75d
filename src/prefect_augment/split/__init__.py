"""Which records train, validate and confirm."""
