"""The links to Asterisk: what it is asked, what it is told, and the ways to get audio."""
