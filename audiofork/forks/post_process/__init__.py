"""The command that may run after a fork."""
