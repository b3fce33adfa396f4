"""The embedder, its backbone and its matching stage. Middle floor: torch and transformers, no Ray."""
