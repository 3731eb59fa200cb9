"""The loops that tie network and learning together; one file per way of exchanging."""
