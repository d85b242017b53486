"""What a project asks of a result: assertions, thresholds, losses since a baseline, waivers."""
