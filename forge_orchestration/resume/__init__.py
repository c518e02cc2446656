"""What was computed is not computed again: what decides a result, earlier results, checkpoints."""
