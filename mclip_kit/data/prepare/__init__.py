"""The way in: from a corpus to a prepared folder, as `mclip-kit prepare` runs it. Nothing in `data` imports from here.

prepare.py        the whole way: read, write, binarise, manifest
resume.py         a folder that exists already, or that an interruption left
writer.py         rows to text tables and text; cleaning.py says which texts stay
columns.py        the text tables to Arrow columns
bitext_writer.py  vocabulary and dictionaries; binarize.py encodes the text, in worker processes if it is long
fingerprints.py   hashes of pictures and texts, for the leakage check
adhoc.py          declarations for a user's own files, made from command-line options
summary.py        what is printed after preparing, and by --list
"""
