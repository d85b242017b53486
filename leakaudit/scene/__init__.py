"""What is audited: the plan of a scan, the victims and their line-ups, what a defense changes, what clients send."""
