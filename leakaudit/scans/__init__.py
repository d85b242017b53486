"""Scans as commands do them: how one speaks and ends, what it writes, and a list of them."""
