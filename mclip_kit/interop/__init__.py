"""Formats of other programs: one module per format; `encoders.py` finds the reader by a recipe's name."""
