"""The page in a real Chromium, served by a stand-in for the daemon."""
