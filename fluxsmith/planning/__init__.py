"""What a run will take, before it is started: memory by part, seconds, traffic between devices."""
