"""The doors: interfaces through which people and programs request forks and get their events."""
