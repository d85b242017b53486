"""Files: what comes from outside is read behind limits, what goes out is written whole, with the rights it needs."""
