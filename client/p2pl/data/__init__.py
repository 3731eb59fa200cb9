"""Examples: where they come from, and who holds which."""
