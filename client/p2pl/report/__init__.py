"""Pictures, tables and pages of what happened in a run or a simulation."""
