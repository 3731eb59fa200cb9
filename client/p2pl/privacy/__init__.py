"""Private training: the policy, what it costs, how a step is made private, and the audit of it."""
