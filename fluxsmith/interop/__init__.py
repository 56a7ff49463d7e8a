"""Weights in and out: Black Forest Labs' files, diffusers' folders, the lesson's checkpoints."""
