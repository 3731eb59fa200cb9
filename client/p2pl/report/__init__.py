"""Pictures, tables and pages: runs, simulations, partitions, privacy plans and audits."""
