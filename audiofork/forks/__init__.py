"""Forks in the control plane: requests, the registry, legs, recovery, the end. No audio here."""
