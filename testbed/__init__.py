"""A real Asterisk of one's own, for tests, the demo and benchmarks."""
