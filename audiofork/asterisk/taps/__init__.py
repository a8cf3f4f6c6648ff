"""Taps: each makes Asterisk connect legs that carry the audio of a channel."""
