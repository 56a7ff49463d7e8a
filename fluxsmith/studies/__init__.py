"""Experiments: declared beforehand, repeated, compared at equal cost, with their error."""
