"""Words beside vectors: BM25 over payload texts, fused with a vector search. Middle floor."""
