"""Proof of an export: another library reads the folder in a process of its own, and gives the model's embeddings.

The process cannot import this package, has no network, and works in another folder; the exported folder has been moved
since it was written. Samples come in groups, because formats differ in what they can do: no other library than
open_clip repairs dirty texts, for example.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mclip_kit.errors import CheckpointError, first_line
from mclip_kit.files import temporary_folder
from mclip_kit.models.multilingual_clip import MultilingualClip

READERS = Path(__file__).parent / "readers"

TEXTS: dict[str, list[str]] = {
    "texts": [
        *("a photo of a red apple", "two dogs", "x", "", "ein roter Apfel", "une pomme rouge", "красное яблоко"),
        *("κόκκινο μήλο", "تفاحة حمراء", "תפוח אדום", "लाल सेब", "লাল আপেল", "சிவப்பு ஆப்பிள்", "แอปเปิ้ลสีแดง"),
        *(
            "빨간 사과",
            "红苹果",
            "赤いりんご",
            "წითელი ვაშლი",
            "ቀይ ፖም",
            "🍎 🐕‍🦺",
            "a <s> b",
            "</s>",
            "<mask> [MASK] [CLS]",
        ),
    ],
    "dirty texts": ["a woman’s “red” coat", "schÃ¶n", "salt &amp;amp; pepper", " two  dogs\n", "ﬁne\u3000ｃａｔ"],
    "long texts": [" ".join(f"word{n % 97} rote" for n in range(1000)), "ein roter Apfel " * 30],
}
"""Group -> texts. Dirty ones are what `text_cleaning: ftfy` changes; long ones are beyond the encoder's positions."""

SIZES = {
    "pictures": ((62, 93), (93, 62), (91, 91), (67, 134), (333, 222), (96, 72)),
    "palette and CMYK": ((96, 72),),
    "photos": ((640, 427), (427, 640), (500, 375)),
    "odd pictures": ((96, 72), (72, 96), (64, 64)),
}
"""Group -> sizes of its pictures, width and height; the last of `pictures` is grey.

At every usual size of a CLIP's pictures all libraries cut those of `pictures` alike; `photos` have sizes of cameras."""

Samples = dict[str, dict[str, list[str]]]
"""Kind, `text` or `picture` -> group -> texts or paths."""
Embeddings = dict[str, np.ndarray]
"""Group -> (N, D)."""


def samples(folder: Path, kinds: Sequence[str] = ("text", "picture")) -> Samples:
    """The samples; their pictures are written into a folder.

    Groups of pictures: `pictures` (RGB and grey, odd sizes), `palette and CMYK`, `photos` (sizes at whose
    resize a centre crop leaves an odd margin, 640x427 at 224), `odd pictures` (transparent, turned by EXIF, 16-bit).
    """
    draw = np.random.default_rng(0)

    def picture(width: int, height: int) -> Image.Image:
        coarse = Image.fromarray(draw.integers(0, 256, (5, 7, 3), np.uint8))
        return coarse.resize((width, height), Image.Resampling.BICUBIC)

    def save(name: str, image: Image.Image, **options: Any) -> str:
        image.save(folder / name, **options)
        return str(folder / name)

    turned = Image.Exif()
    turned[0x0112] = 6
    clear = picture(96, 72).convert("RGBA")
    clear.putalpha(Image.fromarray(draw.integers(0, 256, (72, 96), np.uint8)))
    deep = Image.fromarray(np.asarray(picture(64, 64).convert("L"), np.uint16) * 257)
    files = {
        "pictures": [
            *(save(f"{w}x{h}.png", picture(w, h)) for w, h in SIZES["pictures"][:-1]),
            save("grey.png", picture(*SIZES["pictures"][-1]).convert("L")),
        ],
        "palette and CMYK": [
            save("palette.png", picture(*SIZES["palette and CMYK"][0]).convert("P")),
            save("cmyk.jpg", picture(*SIZES["palette and CMYK"][0]).convert("CMYK"), quality=95),
        ],
        "photos": [save(f"{w}x{h}.png", picture(w, h)) for w, h in SIZES["photos"]],
        "odd pictures": [
            save("clear.png", clear),
            save("turned.jpg", picture(96, 72), exif=turned),
            save("deep.png", deep),
        ],
    }
    every: Samples = {"text": TEXTS, "picture": files}
    return {kind: every[kind] for kind in kinds}


def read(reader: str, folders: Sequence[Path], wanted: Samples, python: str = sys.executable) -> list[Embeddings]:
    """What another library gives for the samples, by a file in `readers/`, with each of the folders.

    Args:
        python: the interpreter of the environment that has the library.
    Raises:
        CheckpointError: the library cannot read a folder.
    """
    with temporary_folder() as elsewhere:
        (elsewhere / "samples.json").write_text(json.dumps(wanted), encoding="utf-8")
        places = [str(folder.resolve()) for folder in folders]
        command = [python, "-P", "-W", "ignore", str(READERS / "read.py"), str(READERS / f"{reader}.py")]
        offline = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONIOENCODING": "utf-8"}
        done = subprocess.run(
            [*command, "samples.json", ".", *places],
            cwd=elsewhere,
            env={**os.environ, **offline},
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        if done.returncode:
            ended = f"its process ended with {done.returncode}, without a message"  # negative: killed by that signal
            last = (done.stderr.strip().splitlines() or [ended])[-1]
            raise CheckpointError(f"{reader} cannot load what was exported: {first_line(RuntimeError(last))}")
        return [dict(np.load(elsewhere / f"{number}.npz")) for number in range(len(folders))]


def own(model: MultilingualClip, wanted: Samples, encode_text: Callable[[list[str]], Any] | None = None) -> Embeddings:
    """The model's embeddings of the samples; `encode_text`: its student's by default."""
    encode = {"text": encode_text or model.encode_text, "picture": model.encode_image}
    return {
        group: np.asarray(encode[kind](items), np.float32)
        for kind, groups in wanted.items()
        for group, items in groups.items()
    }


def differences(ours: Embeddings, theirs: Embeddings) -> dict[str, float]:
    """The largest difference of a number in each group that both have; infinite where the shapes differ or for NaN."""
    found = {}
    for group in ours:
        if group in theirs:
            same = ours[group].shape == theirs[group].shape
            largest = float(np.abs(ours[group] - theirs[group]).max()) if same else np.inf
            found[group] = largest if np.isfinite(largest) else np.inf
    return found


def check(library: str, found: Mapping[str, float], allowed: Mapping[str, float]) -> None:
    """CheckpointError if a group differs by more than is allowed; groups that are not in `allowed` may differ."""
    for group, most in allowed.items():
        if not found.get(group, np.inf) <= most:
            raise CheckpointError(
                f"nothing exported: {library}'s embeddings of {group} differ from the model's by "
                f"{found.get(group, np.inf):.1e}, more than {most:.0e}"
            )
