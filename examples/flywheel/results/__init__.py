"""The results page of the comparison: from the cells that were measured to docs/results-tiny.md and its figures."""
