"""The same numbers sooner: nothing below knows of it, and without it everything works."""
