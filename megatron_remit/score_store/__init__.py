"""The reference's NLLs of whole token rows on disk: computed once, read by every later run (docs/score-store.md)."""
