"""Models with random weights and rows of given lengths, for benchmarks of time and memory."""
