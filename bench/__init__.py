"""Measures the relay: `python -m bench.run`, `bench.ab`, `bench.beside_asterisk`."""
