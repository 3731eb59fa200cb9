"""An app as one writes it for Flower: nothing in this folder knows of p2pl."""
