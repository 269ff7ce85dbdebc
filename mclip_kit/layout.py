"""What lies where: the files of a run folder, a model folder and a prepared folder, each named once.

RUN/                            what `mclip-kit train` writes
    recipe.yaml                 the resolved recipe
    metrics.jsonl               loss terms and evaluations, one row each; the same in tensorboard/
    checkpoints/                last.pt: the newest step; best.pt: best weights of the stage; start.pt: its first
    model/                      the model folder; model-wise_ft/: between the last stage's start and its end (WiSE-FT)
    nonfinite.jsonl             rows of steps that were skipped because loss or gradient was non-finite (NaN or inf)
    leakage.json                test sets whose rows were trained on, if any are prepared beside the data
    unreadable.txt              pictures that could not be read
RUN/../features/                outputs of frozen towers, which other runs beside it read too

MODEL/                          what `mclip_kit.load` reads
    config.json                 how the parts fit together; it is written last, so a folder that has it is whole
    clip/                       an open_clip folder: image tower, teacher's text tower, preprocessing
    encoder/                    a transformers folder with its tokenizer
    projector.safetensors       projector and CLIP projector
    decoder/, language_linear.safetensors, translator.json    a translator's, instead of the others but encoder/

DATA/                           what `mclip-kit prepare` writes
    manifest.json               counts, hashes, licences, tool version
    images.npy                  uint8 (N, S, S, 3), where the corpus draws its pictures itself
    images.tsv, captions.tsv    one row a picture; one row a caption
    bitext/                     fairseq-binarised parallel sentences and their SentencePiece model
    fingerprints/               hashes of pictures and texts by split, for the leakage check
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
FEATURES = "features"  # beside the run
EVALUATION = "eval"  # beside the model; of other tasks eval_TASK
RESULTS = "results.json"
REPORT = "report.html"

MODEL_CONFIG = "config.json"
CLIP = "clip"
ENCODER = "encoder"
DECODER = "decoder"
PROJECTOR = "projector.safetensors"
TRANSLATOR_CONFIG = "translator.json"
LANGUAGE_LINEAR = "language_linear.safetensors"

MANIFEST = "manifest.json"
IMAGES_ARRAY = "images.npy"
IMAGES_TABLE = "images.tsv"
CAPTIONS_TABLE = "captions.tsv"
BITEXT = "bitext"
FINGERPRINTS = "fingerprints"
IMAGE_COLUMNS = ("image", "group", "stratum")  # of images.tsv; where pictures are files, `file` is the last column
CAPTION_COLUMNS = ("image", "language", "split", "caption")  # of captions.tsv
