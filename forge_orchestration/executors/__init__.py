"""Backends that run executions, under one contract."""
