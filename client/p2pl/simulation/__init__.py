"""Many virtual peers in one process, through the same `learning` code as a networked peer."""
