"""What uses the engine: the self-test of a runtime, reconciliation after a crash."""
