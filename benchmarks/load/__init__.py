"""The load: a lean HTTP client in a process of its own, and who drives it."""
