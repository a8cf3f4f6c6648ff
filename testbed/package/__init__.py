"""Debian systems for building the package, and for testing it with systemd as PID 1. Needs root."""
