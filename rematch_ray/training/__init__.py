"""Optimisation steps and what they need. Middle floor: no Ray, no files of the user's."""
