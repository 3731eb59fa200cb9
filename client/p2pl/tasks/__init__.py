"""What a session's model is to do, and how good it is at it; one file per task."""
