"""What Forge tells of itself: Prometheus metrics, the Quest view and its JSON, a pandas frame. It looks, and runs nothing."""
