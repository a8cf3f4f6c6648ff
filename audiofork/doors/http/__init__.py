"""The HTTP door; imported only where [http] is configured, because aiohttp takes 13 MB."""
