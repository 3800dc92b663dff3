"""Trainer: Composer's words on top of a session."""
