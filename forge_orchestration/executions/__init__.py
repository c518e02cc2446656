"""What an execution leaves: its folder, record, logs, messages, outputs, and its row in the store."""
