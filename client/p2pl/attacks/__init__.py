"""Bad peers to test with: what they serve, and how one takes part in a real swarm."""
