"""Finished pieces of work as files, named by all that they depend on: kept, claimed by one, taken up by others."""
