"""The doors by which people and programs ask for forks, and hear of them."""
