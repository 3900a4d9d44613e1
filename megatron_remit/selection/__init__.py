"""Difference sampling over documents (MiniPLM, Gu et al. 2024): keep those that a large model prefers most over a small
one.

The order of reading: documents.py (a difference for each document, from two score stores) -> corpus.py (the threshold,
and the kept documents as a new corpus).
"""
