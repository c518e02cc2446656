"""Tests of Forge. Run them with `make test`."""
