"""Exchange kind `raft`: one peer at a time aggregates, elected for a term; any peer may be next."""
