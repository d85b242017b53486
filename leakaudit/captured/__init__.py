"""What a real client sent: the file that holds it, what is missing in it, and how it is audited."""
