"""Debian systems to build the package in, and to try it in with systemd as PID 1. Takes root."""
