"""Several processes as one run: what they tell each other, how they add up, what each holds."""
