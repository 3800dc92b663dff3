"""What the harness costs, measured: the same loop with and without it, step by step in turn."""
