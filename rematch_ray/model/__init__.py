"""The MLLM as an embedder and as a matcher, its exports, and the tiny base. Middle floor."""
