"""Hard negatives: which documents a query should be trained against. Middle floor."""
