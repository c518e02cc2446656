"""For authors of executors: the suite that every executor passes. See docs/executors.md."""
