"""The tracker: tells peers of a session about each other and never sees a parameter."""
