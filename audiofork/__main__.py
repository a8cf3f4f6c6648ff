"""Lets `python -m audiofork` do what the command `audiofork` does."""

from audiofork.cli import main

if __name__ == "__main__":
    main()
