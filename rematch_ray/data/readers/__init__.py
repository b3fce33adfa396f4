"""Formats users already have, read as Items and Samples (middle floor)."""
