"""Private training: what was promised, what it costs, and how a step is made private."""
