"""Tests of what several hosts share, with real NATS servers."""
