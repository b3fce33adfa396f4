"""Peers as the benchmarks run them: other libraries' models and loops on our rows."""
