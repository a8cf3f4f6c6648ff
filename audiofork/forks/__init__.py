"""The life of forks: requests, the registry, their legs, their end. It touches no audio."""
