"""The command `setup`: puts the daemon beside an Asterisk, and takes all of it back."""
