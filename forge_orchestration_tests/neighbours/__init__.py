"""What lives beside Forge on a shared host, and what attacks it: the parts of `make bench-neighbours`."""
