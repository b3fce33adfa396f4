"""The coarse stage: which documents of a segment deserve a closer look. Middle floor."""
