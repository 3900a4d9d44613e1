"""Several models over the same text: the paper's analyses (figures 2, 3, 6b, 10 and 11) and runs side by side.

The order of reading: inputs.py (models and texts) -> score.py (log-probabilities and KL) -> figures.py, heatmap.py,
tokens.py, runs.py -> page.py (HTML) -> build.py (all of it).
"""
