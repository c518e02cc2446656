"""Named, locked, sealed software environments."""
