"""Pictures and labels in every common form, read as records."""
