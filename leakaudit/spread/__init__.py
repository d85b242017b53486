"""One scan by several participants: what they are told, how they are started, on this machine and on others."""
