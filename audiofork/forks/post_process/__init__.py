"""The post-process command, which may run after the end of a fork."""
