"""Taps: ways to get a leg that carries the audio of a channel."""
