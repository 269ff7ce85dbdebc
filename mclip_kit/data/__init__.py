"""Text and pictures on disk, and the training rows that are made of them.

captions.py, bitext.py   read a prepared folder: pictures with captions, and parallel sentences
datasets.py              their rows as columns, for one kind of stage each; batching.py draws batches from them
tokenizer.py             XLM-R's SentencePiece ids; fairseq_io.py reads and writes fairseq's binary files
images.py                names and bytes of pictures; transforms.py makes tensors of them
languages.py             language codes; sequences.py: long columns that stay on disk
leakage.py               which items of a test set are also trained on
corpora/                 what data_prep/*.yaml declares, and a reader for each kind of source
prepare/                 writes a prepared folder; only `mclip-kit prepare` and its like import it

`layout.py` lists the files of a prepared folder.
"""
