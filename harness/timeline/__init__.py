"""The always-on step recorder: where each step's time went, and what of it the harness itself took."""
