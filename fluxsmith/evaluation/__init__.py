"""Numbers that say how good a model is, and how far to trust them."""
