"""What is written and what it means: the schema of a result and of an outcome, files, numbers in words."""
