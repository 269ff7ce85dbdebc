"""What only the embedded demo needs; the package without the extra `demo` never imports it.

emoji.py                                the reader of the emoji corpus: draws OpenMoji pictures, takes CLDR names
e5.py, e5_file.py, e5_tokenizer.py      `mclip-kit import e5`: a small encoder from a package index, without a hub
"""
