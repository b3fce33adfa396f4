"""Workloads: what runs on a Ray cluster. Adapters over the middle floor; no maths here."""
