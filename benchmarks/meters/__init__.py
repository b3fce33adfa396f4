"""What the benchmarks measure with: memory, CPU-seconds, processes of their own."""
