"""Quality against cost: metrics, our own tasks, tables and pictures."""
