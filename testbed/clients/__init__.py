"""Servers of WebSocket messages out of packages that others wrote; each runs as a process."""
