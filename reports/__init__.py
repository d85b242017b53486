"""Report formats, one file each. A report reads an AuditResult and nothing else."""
