"""The report of a flywheel run: one self-contained HTML file and the same figures as JSON.

The order of reading: load.py (what is in a run folder) -> score.py (log-probabilities with the HF models) ->
reading.py (what the numbers allow one to say) -> figures.py, heatmap.py, page.py (HTML) -> build.py (all of it).
"""
