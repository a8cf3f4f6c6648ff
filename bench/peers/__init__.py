"""Relays that do the same job by other means; programs, each started by its path."""
