"""Difference sampling over documents (MiniPLM, Gu et al. 2024): keep those that a large model prefers most over a small
one.

The order of reading: documents.py (a score for each document from two score stores) -> ranking.py (the threshold) ->
corpus.py (the kept documents as a new corpus, and the manifest).
"""
