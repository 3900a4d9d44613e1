"""Training objectives: pure torch functions from per-token negative log-likelihoods to weights and statistics."""
