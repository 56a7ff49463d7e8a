"""Students of a trained model: the guidance scale as an input (dev), and few steps (schnell)."""
