"""Runs a private Asterisk, SIP phones and WebSocket servers for tests, demo and benchmarks."""
