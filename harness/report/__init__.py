"""Turns what a run wrote into what people read. Loads neither torch nor the training side."""
