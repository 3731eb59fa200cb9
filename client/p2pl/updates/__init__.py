"""A peer's update log, and what it has seen of those of others."""
