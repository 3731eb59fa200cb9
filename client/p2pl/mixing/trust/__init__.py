"""The rule `degroot`: trust in others, learned by experience."""
