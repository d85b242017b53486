"""What may be asked for: the options that commands share, and where their values come from."""
