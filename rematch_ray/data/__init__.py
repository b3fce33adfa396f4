"""Rows, media, prompts and batches: what a model is fed (middle floor; knows nothing of Ray)."""
