"""The control plane: requests, forks and Asterisk. It touches no audio."""
