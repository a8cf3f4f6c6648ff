"""The HTTP door; imported only where [http] is configured, because aiohttp takes 14 MB."""
