"""The index: planes of vectors by token range, coarse lists, payload, and search at any budget."""
