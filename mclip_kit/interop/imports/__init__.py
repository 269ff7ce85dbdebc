"""Models of other programs become model folders: one module a source, named as `mclip-kit import` names it.

Each function gives a MultilingualClip with the source's embeddings. `source.py` has what they share.
"""
