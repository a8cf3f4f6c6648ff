"""Sends the audio of live Asterisk calls to WebSocket servers."""

__version__ = "0.1.0"
