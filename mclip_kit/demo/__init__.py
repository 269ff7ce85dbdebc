"""What only the embedded demo needs; the package without the extra `demo` never imports it.

emoji.py                                the reader of emoji: OpenMoji pictures, rendered, and the package emoji's names
emoji_cldr.py                           the same pictures with the names of Unicode's CLDR
e5.py, e5_file.py, e5_tokenizer.py      `mclip-kit import e5`: a small encoder from a package index, without a hub
"""
