"""Numbers: weights, models, data, training, trust, mixing, evaluation. Knows nothing of sockets."""
