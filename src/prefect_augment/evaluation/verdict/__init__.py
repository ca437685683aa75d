"""What the comparisons on held-out records answer, and which strategy they are made for."""
