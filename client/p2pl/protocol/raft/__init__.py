"""What raft decides and says; no clock, no network and no numbers of a model."""
