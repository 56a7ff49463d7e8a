"""Training: one loop, which knows neither what it minimises nor how a model is judged."""
