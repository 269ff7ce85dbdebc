"""Names of the files in a run folder, a model folder and a prepared folder. Each name is defined here only.

RUN/                            what `mclip-kit train` writes
    recipe.yaml                 the resolved recipe
    metrics.jsonl               loss terms and evaluations, one row each; the same in tensorboard/
    checkpoints/                last.pt: the newest step; best.pt: best weights of the stage; start.pt: its first
    model/                      the model folder; model-wise_ft/: between the last stage's start and end (WiSE-FT)
    nonfinite.jsonl             rows of steps that were skipped because loss or gradient was non-finite (NaN or inf)
    leakage.json                test sets with rows that were trained on, if such sets are prepared next to the data
    unreadable.txt              pictures that could not be read
    eval/DATA.SPLIT.../          what `mclip-kit eval` writes about RUN/model: results.json, report.html, ...
RUN/../features/                outputs of frozen towers, shared by the runs in the same folder and by `mclip-kit eval`

MODEL/                          what `mclip_kit.load` reads
    config.json                 how the parts fit together, and hashes of their files (translator.json too); written
                                last, so a folder that has it is complete
    clip/                       an open_clip folder: image tower, teacher's text tower, preprocessing
    encoder/                    a transformers folder with its tokenizer
    projector.safetensors       projector and CLIP projector
    card.json, README.md        what is known of the model, and its card made from that; nothing reads them to encode
    decoder/, language_linear.safetensors, translator.json    a translator has these and encoder/, nothing else

DATA/                           what `mclip-kit prepare` writes
    manifest.json               counts, hashes, licences, tool version
    images.npy                  uint8 (N, S, S, 3), only if the corpus renders its pictures itself
    images.arrow                one row a picture, in the order of images.npy; `mclip-kit data show DATA` prints it
    captions.arrow              one row a caption
    uncaptioned.arrow           splits of pictures without a caption there: they belong to the split's gallery
                                (earlier versions: images.tsv, captions.tsv, uncaptioned.tsv, which are read too)
    bitext/                     fairseq-binarised parallel sentences: sentencepiece.bpe.model, dict.LANG.txt,
                                SPLIT.SRC-TGT.LANG.bin and .idx, and .txt with the raw text
    fingerprints/               hashes of pictures and texts by split, for the leakage check
    pictures.tar                pictures that were inside a table, only if there were such
    pictures/                   optional: picture files that a user adds later, under the names of images.arrow
"""

RECIPE = "recipe.yaml"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
LAST, BEST, START = (f"{CHECKPOINTS}/{name}.pt" for name in ("last", "best", "start"))
MODEL = "model"
MODEL_WISE_FT = "model-wise_ft"
NONFINITE = "nonfinite.jsonl"
LEAKAGE = "leakage.json"
UNREADABLE = "unreadable.txt"
TENSORBOARD = "tensorboard"
FEATURES = "features"  # next to the run folder
EVALUATION = "eval"  # next to the model folder: a folder an evaluation, see evaluate/folders.py
RESULTS = "results.json"
REPORT = "report.html"

MODEL_CONFIG = "config.json"
CLIP = "clip"
CLIP_WEIGHTS, CLIP_CONFIG = "open_clip_model.safetensors", "open_clip_config.json"
ENCODER = "encoder"
DECODER = "decoder"
PROJECTOR = "projector.safetensors"
CARD = "card.json"
DAMAGED_CARD = f"damaged-{CARD}"  # what a damaged one is kept as; it is not pushed to a hub
README = "README.md"
TRANSLATOR_CONFIG = "translator.json"
LANGUAGE_LINEAR = "language_linear.safetensors"

MANIFEST = "manifest.json"
IMAGES_ARRAY = "images.npy"
IMAGES = "images.arrow"
CAPTIONS = "captions.arrow"
UNCAPTIONED = "uncaptioned.arrow"
IMAGES_TABLE = "images.tsv"  # these three: while a folder is being built, and in folders of earlier versions
CAPTIONS_TABLE = "captions.tsv"
UNCAPTIONED_TABLE = "uncaptioned.tsv"
BITEXT = "bitext"
FINGERPRINTS = "fingerprints"
PICTURES = "pictures"
PICTURES_TAR = "pictures.tar"
IMAGE_COLUMNS = ("image", "group", "stratum")  # of a .tsv; if pictures are files, a column `file` follows
CAPTION_COLUMNS = ("image", "language", "split", "caption")
UNCAPTIONED_COLUMNS = ("image", "split")
