"""The report of a flywheel run: one self-contained HTML file and the same figures as JSON.

The order of reading: load.py (what is in a run folder) -> heldout.py (held-out texts under the base and the RL model)
-> reading.py (what the numbers allow one to say) -> figures.py -> page.py and report.html -> build.py (all of it).
"""
