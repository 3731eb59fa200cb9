"""What a peer makes of the models it received; one file per rule."""
