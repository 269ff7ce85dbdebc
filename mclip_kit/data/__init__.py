"""Text and images on disk."""

PICTURE_COLUMNS = ("image", "group", "stratum")  # of images.tsv; where pictures are files, `file` comes behind
CAPTION_COLUMNS = ("image", "language", "split", "caption")  # of captions.tsv
