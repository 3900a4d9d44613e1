"""The mathematics of the objectives: pure torch functions from per-token NLLs to weights, choices and statistics."""
