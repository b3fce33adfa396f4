"""The arms of the benchmark `embedding`; each runs in a process of its own."""
