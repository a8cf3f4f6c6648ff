"""Measures the relay: `python -m bench.run`, `.ab`, `.capacity`, `.beside_asterisk`."""
