"""What the command line does besides asking the daemon."""
