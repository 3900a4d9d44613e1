"""What trained models and training logs say: the paper's analyses (figures 2, 3, 6b, 10 and 11) and runs side by side.

The order of reading: inputs.py and models.py (texts, tokenizers and models) -> score.py (log-probabilities and KL) ->
figures.py, heatmap.py, curves.py with scalars.py (figures) -> page.py (HTML) -> build.py (all of it).
"""
