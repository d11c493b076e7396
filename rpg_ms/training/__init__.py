"""Training: device, construction, loop, checkpoints, the run's folder."""
