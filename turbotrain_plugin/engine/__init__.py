"""The engine: stages, steps, checkpoints, runs."""
