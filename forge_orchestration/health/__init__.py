"""Checks of host, runtimes and what is kept, and what has changed since the last: what is wrong is found before an execution needs it."""
