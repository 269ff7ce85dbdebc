"""How each library reads an exported folder: one file a format, which imports that library alone.

Each file has `load(folder)`, which returns two functions: texts to embeddings (N, D), and paths of pictures to
embeddings (N, D), L2-normalised, as numpy arrays. `read.py` runs one in a fresh process; the docs print them.
"""
