"""A version as regulators and catalogues read it, made from its manifest alone."""
