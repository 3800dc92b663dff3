"""The training loop's one hot path: a session owns the run, its steps, logs, captures and checkpoints."""
