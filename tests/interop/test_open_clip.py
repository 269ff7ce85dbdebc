"""What is exported is loaded by open_clip's own functions, and scored by clip-benchmark's own command."""

import io
import json
import os
import runpy
import subprocess
import sys
import tarfile
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch import Tensor

from mclip_kit.config.model import AS_OPEN_CLIP, AS_SEEN
from mclip_kit.data.captions import read_captions
from mclip_kit.errors import CheckpointError
from mclip_kit.evaluate.retrieval import score
from mclip_kit.interop import parity
from mclip_kit.interop.export import export
from mclip_kit.interop.open_clip import FORMAT, notes
from mclip_kit.models.clip import build_clip
from mclip_kit.models.multilingual_clip import MultilingualClip
from tests import tiny
from tests.interop.models import build

TEXTS = ["red square left, shade 3", "Quadrat grün links, Ton 1", "carré bleu haut", "red"]
RESNET = {**tiny.TEACHER, "vision_cfg": {"image_size": 32, "patch_size": None, "width": 8, "layers": [1, 1, 1, 1]}}
TEXT_BIAS = {**tiny.TEACHER, "text_cfg": {**tiny.TEACHER["text_cfg"], "proj_bias": True}}
DIRTY = parity.TEXTS["dirty texts"]
SPECIAL = ["a <s> b", "</s>", "<mask> [MASK] [CLS]", "<pad> <unk>"]
NO_MAP = {**tiny.TEACHER, "text_cfg": {**tiny.TEACHER["text_cfg"], "proj_type": "none"}}


def written(model: MultilingualClip, folder: Path, **options: Any) -> dict[str, Any]:
    """Write the folder without its proof in another process; what was chosen."""
    chosen = {**FORMAT.options, **options}
    reason = FORMAT.misfit(model, chosen)
    assert reason is None, reason
    folder.mkdir()
    FORMAT.write(model, folder, chosen)
    return chosen


def strangers(folder: Path, texts: list[str] = TEXTS) -> tuple[Tensor, Tensor]:
    """Text and image embeddings as anyone computes them who has open_clip and the folder."""
    encode_texts, encode_pictures = runpy.run_path(str(parity.READERS / "open_clip.py"))["load"](str(folder))
    files = []
    for number, picture in enumerate(pictures()):
        files.append(folder.with_name(f"{folder.name}.{number}.png"))
        picture.save(files[-1])
    found = encode_texts(texts), encode_pictures(files)
    for file in files:
        file.unlink()
    return found


def pictures() -> list[Image.Image]:
    draw = np.random.default_rng(5)
    return [Image.fromarray(draw.integers(0, 256, (20, 30, 3), np.uint8)) for _ in range(3)]


STUDENTS: list[tuple[dict[str, Any], str]] = [
    ({"kind": "linear", "pool": "mean"}, "none"),  # fewer states than embeddings
    ({"kind": "mlp", "pool": "mean", "hidden": 13}, "none"),  # as many units as fit beside the bias
    ({"kind": "altclip", "pool": "cls"}, "linear"),
]


@pytest.mark.parametrize(("projector", "clip_projector"), STUDENTS)
def test_open_clip_gives_the_embeddings_of_a_narrow_student(squares, tmp_path, projector, clip_projector):
    """`test_formats.py` has every kind of student, at a width above the CLIP's."""
    model = build(squares, projector, clip_projector, 12, tiny.TEACHER)
    written(model, tmp_path / "out")
    text_ND, image_ND = strangers(tmp_path / "out")
    torch.testing.assert_close(text_ND, model.encode_text(TEXTS), atol=1e-5, rtol=0)
    torch.testing.assert_close(image_ND, model.encode_image(pictures()), atol=1e-5, rtol=0)


def test_open_clip_cleans_texts_and_cuts_them_at_the_context(squares, tmp_path):
    model = build(squares, {"kind": "linear", "pool": "mean"}, "none", 24, tiny.TEACHER)
    written(model, tmp_path / "out", context=6)
    theirs_ND, _ = strangers(tmp_path / "out", ["“red”", "red &amp; blue"])
    cut = [ids if len(ids) <= 6 else [*ids[:5], ids[-1]] for ids in model.student_tokens(['"red"', "red & blue"])]
    with torch.no_grad():
        ours_ND = torch.nn.functional.normalize(model.embed_tokens([np.array(ids) for ids in cut]), dim=-1)
    torch.testing.assert_close(theirs_ND, ours_ND, atol=1e-5, rtol=0)


def test_dirty_texts_have_the_same_embeddings_if_the_model_cleans_them(squares, tmp_path):
    model = build(squares, {"kind": "linear", "pool": "mean"}, "none", 24, tiny.TEACHER)
    chosen = written(model, tmp_path / "raw")
    assert any("text_cleaning: none" in note for note in notes(model, chosen))
    assert "dirty texts" not in FORMAT.allowed(model, chosen)
    plain_ND = model.encode_text(TEXTS)
    special_ND = strangers(tmp_path / "raw", SPECIAL)[0]  # names of special tokens are text with and without cleaning
    torch.testing.assert_close(special_ND, model.encode_text(SPECIAL), atol=1e-5, rtol=0)
    assert (strangers(tmp_path / "raw", DIRTY)[0] - model.encode_text(DIRTY)).abs().max() > 0.01
    model.text_cleaning = "ftfy"
    chosen = written(model, tmp_path / "out")
    torch.testing.assert_close(strangers(tmp_path / "out", DIRTY)[0], model.encode_text(DIRTY), atol=1e-5, rtol=0)
    assert torch.equal(model.encode_text(TEXTS), plain_ND)
    assert not any("text_cleaning" in note for note in notes(model, chosen))
    assert "dirty texts" in FORMAT.allowed(model, chosen)
    content = json.loads((tmp_path / "out" / "open_clip_config.json").read_text())
    assert content["mclip_kit"] == {"text_cleaning": "ftfy", "pictures": AS_OPEN_CLIP.model_dump()}


def test_what_open_clip_does_otherwise_is_told(squares):
    model = build(squares, {"kind": "linear", "pool": "mean"}, "none", 24, tiny.TEACHER)
    teacher = {**FORMAT.options, "tower": "teacher"}
    (note,) = notes(model, teacher)
    assert "RGB" in note
    model.clip[0].pictures = AS_SEEN
    _, note = notes(model, teacher)
    for word in ("EXIF", "transparent", "16-bit"):
        assert word in note
    assert "odd pictures" not in FORMAT.allowed(model, teacher)
    assert any("cuts them at 5 tokens" in note for note in notes(model, {**FORMAT.options, "context": 5}))


def test_open_clip_finds_the_text_config_from_inside_the_folder_only(squares, tmp_path, monkeypatch):
    """Why `local-dir:DIR` alone is not enough elsewhere: transformers takes hf_model_name from the current folder."""
    model = build(squares, {"kind": "linear", "pool": "mean"}, "none", 24, tiny.TEACHER)
    written(model, tmp_path / "out")
    moved = (tmp_path / "out").rename(tmp_path / "else where")
    with pytest.raises(OSError, match=r"huggingface\.co"):  # `text` is taken for a name on the hub
        open_clip.create_model_and_transforms(f"local-dir:{moved}")
    torch.testing.assert_close(strangers(moved)[0], model.encode_text(TEXTS), atol=1e-5, rtol=0)
    monkeypatch.chdir(moved)
    loaded, _, _ = open_clip.create_model_and_transforms("local-dir:.")
    with torch.no_grad():
        text_ND = loaded.eval().encode_text(open_clip.get_tokenizer("local-dir:.")(TEXTS), normalize=True)
    torch.testing.assert_close(text_ND, model.encode_text(TEXTS), atol=1e-5, rtol=0)


USED = """
import sys
import numpy
sys.modules["mclip_kit"] = None
for number, lines in enumerate(sys.stdin.read().split("-----")):
    exec(lines)
    numpy.savez(f"{number}.npz", text=text_ND.detach(), image=image_ND.detach())
"""


def test_the_lines_of_the_card_run_anywhere_and_those_of_a_repository_run_from_the_hub(squares, tmp_path):
    """The hub is its own cache on this machine, in the layout in which it stores a repository."""
    repo, commit = "someone/squares", "0" * 40
    model = build(squares, {"kind": "altclip", "pool": "cls"}, "linear", 24, tiny.TEACHER)
    pushed = tmp_path / "home" / "hub" / "models--someone--squares"
    (pushed / "snapshots").mkdir(parents=True)
    (pushed / "refs").mkdir()
    (pushed / "refs" / "main").write_text(commit)
    options = [written(model, pushed / "snapshots" / commit, repo=repo)]
    options.append(written(model, tmp_path / "out"))
    options.append(written(model, tmp_path / "teacher", tower="teacher"))
    folders = ["", str(tmp_path / "out"), str(tmp_path / "teacher")]
    lines = [FORMAT.lines(model, chosen).format(folder=path) for chosen, path in zip(options, folders, strict=True)]
    assert repo in lines[0]
    assert "text_cfg" not in lines[0] + lines[2]
    (tmp_path / "elsewhere").mkdir()
    pictures()[0].save(tmp_path / "elsewhere" / "photo.jpg")
    ran = subprocess.run(
        [sys.executable, "-P", "-W", "ignore", "-c", USED],
        input="-----".join(lines),
        cwd=tmp_path / "elsewhere",
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    image_ND = model.encode_image(tmp_path / "elsewhere" / "photo.jpg").numpy()
    for number, encode in enumerate((model.encode_text, model.encode_text, model.encode_teacher_text)):
        found = np.load(tmp_path / "elsewhere" / f"{number}.npz")
        np.testing.assert_allclose(found["text"], encode("ein Hund").numpy(), atol=1e-5, rtol=0)
        np.testing.assert_allclose(found["image"], image_ND, atol=1e-5, rtol=0)


def test_a_repository_has_a_name_of_two_parts(squares):
    model = build(squares, {"kind": "linear", "pool": "mean"}, "none", 24, tiny.TEACHER)
    assert "--repo mine: give ORG/NAME" in FORMAT.misfit(model, {**FORMAT.options, "repo": "mine"})
    assert FORMAT.misfit(model, {**FORMAT.options, "repo": "a/b"}) is None


@pytest.mark.parametrize("clip_projector", ["none", "linear"])
@pytest.mark.parametrize("teacher", [tiny.TEACHER, RESNET, TEXT_BIAS], ids=["vit", "resnet", "text bias"])
def test_open_clip_gives_the_teachers_embeddings_in_the_models_space(squares, tmp_path, teacher, clip_projector):
    model = build(squares, {"kind": "transformer", "pool": "eos"}, clip_projector, 24, teacher)
    written(model, tmp_path / "out", tower="teacher")
    text_ND, image_ND = strangers(tmp_path / "out")
    assert text_ND.shape[1] == model.width
    torch.testing.assert_close(text_ND, model.encode_teacher_text(TEXTS), atol=1e-5, rtol=0)
    torch.testing.assert_close(image_ND, model.encode_image(pictures()), atol=1e-5, rtol=0)


def test_a_norm_that_lets_a_dimension_go_is_no_obstacle(squares, tmp_path):
    model = build(squares, {"kind": "linear", "pool": "mean"}, "none", 24, tiny.TEACHER)
    with torch.no_grad():
        model.encoder.model.encoder.layer[-1].output.LayerNorm.weight[3] = 0
    written(model, tmp_path / "out")
    torch.testing.assert_close(strangers(tmp_path / "out")[0], model.encode_text(TEXTS), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("projector", "message"),
    [
        ({"kind": "transformer", "pool": "eos"}, "cannot represent pool: eos. Train a student with pool: cls or mean"),
        ({"kind": "altclip", "pool": "mean"}, "cannot represent altclip with pool: mean. .* pool: cls"),
        ({"kind": "mlp", "pool": "mean", "hidden": 20}, "20 units, .* the mlp's 21. .* hidden: 19 or less"),
    ],
)
def test_a_head_that_open_clip_has_no_form_for_is_named_and_nothing_is_written(squares, tmp_path, projector, message):
    model = build(squares, projector, "none", 24, tiny.TEACHER)
    with pytest.raises(CheckpointError, match=message):
        export(model, "open-clip", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_embeddings_that_would_differ_are_not_exported(squares, tmp_path):
    model = build(squares, {"kind": "transformer", "pool": "mean"}, "none", 24, tiny.TEACHER)
    model.encoder.config.hidden_act = "relu"  # the config's layers are the projector's too, which are GELU's
    with pytest.raises(CheckpointError, match="nothing exported: open_clip's embeddings of texts differ"):
        export(model, "open-clip", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_clip_whose_last_map_is_not_known_cannot_take_the_projector(squares, tmp_path):
    model = build(squares, {"kind": "linear", "pool": "mean"}, "linear", 24, NO_MAP)
    with pytest.raises(CheckpointError, match="the CLIP's text tower ends in no linear map"):
        export(model, "open-clip", tmp_path / "out", tower="teacher")
    written(model, tmp_path / "student")  # has another text tower


def test_the_folder_is_a_teacher_of_ours_wherever_it_goes(squares, tmp_path):
    model = build(squares, {"kind": "linear", "pool": "mean"}, "none", 24, tiny.TEACHER)
    written(model, tmp_path / "out")
    clip = build_clip(f"local-dir:{(tmp_path / 'out').rename(tmp_path / 'elsewhere')}")
    with torch.no_grad():
        text_ND = torch.nn.functional.normalize(clip.eval().model.text(clip.tokenize(TEXTS)), dim=-1)
    torch.testing.assert_close(text_ND, model.encode_text(TEXTS), atol=1e-5, rtol=0)


def dirty(text: str, number: int) -> str:
    """One of several ways in which texts of the web are dirty."""
    ways = ("“{}”", "schÃ¶n {}", "{} &amp;amp; {}", "  {}  ", "<s> {}", "{} </s>", "<mask> {}", "{}’s <pad>", "{}")
    return ways[number % len(ways)].replace("{}", text)


def odd(picture: Image.Image, number: int) -> bytes:
    """The picture as a file with transparency, with an orientation, or as it is."""
    picture, written = picture.convert("RGB"), io.BytesIO()
    options: dict[str, Any] = {}
    kind = number % 3
    if kind == 0:
        picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    elif kind == 1:
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = 6
    picture.save(written, "png", **options)
    return written.getvalue()


def webdataset(folder: Path, captions: Any, images: np.ndarray) -> tuple[list[list[str]], list[Path]]:
    """A retrieval set as clip-benchmark reads it, with dirty texts and odd pictures; captions and picture files."""
    (folder / "test").mkdir(parents=True)
    (folder / "dataset_type.txt").write_text("retrieval")
    (folder / "test" / "nshards.txt").write_text("1")
    texts, files = [], []
    with tarfile.open(folder / "test" / "0.tar", "w") as archive:
        for number, image in enumerate(images):
            rows = np.flatnonzero(captions.images == image)[:2]
            own = [dirty(str(captions.texts[row]), 2 * number + i) for i, row in enumerate(rows)]
            texts.append(own)
            png = odd(captions.picture(int(image)), number)
            files.append(folder / f"{image:04}.png")
            files[-1].write_bytes(png)
            for suffix, content in (("png", png), ("txt", "\n".join(own).encode())):
                member = tarfile.TarInfo(f"{image:04}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return texts, files


def test_clip_benchmarks_command_prints_our_metrics_to_the_last_digit(squares, tmp_path):
    """Also for dirty texts, and for odd pictures if the model takes them as open_clip does."""
    pytest.importorskip("clip_benchmark", reason="the extra `dev` is not installed")
    teacher = {**tiny.TEACHER, "text_cfg": {**tiny.TEACHER["text_cfg"], "context_length": 40}}  # cut texts would tie
    model = build(squares, {"kind": "altclip", "pool": "cls"}, "linear", 24, teacher)
    model.text_cleaning = "ftfy"
    captions = read_captions(squares)
    images = np.unique(captions.images)[::2]
    texts, files = webdataset(tmp_path / "data", captions, images)
    towers = {"student": model.encode_text, "teacher": model.encode_teacher_text}
    folders = {"student": tmp_path / "student", "teacher": tmp_path / "student" / "teacher"}
    for tower in towers:
        written(model, folders[tower], tower=tower)
    names = {"student": "local-dir:.", "teacher": "local-dir:teacher"}  # from inside the student's folder
    command = "import sys; from clip_benchmark.cli import main; sys.exit(main())"
    options = [
        "--dataset",
        "wds/squares",
        "--dataset_root",
        str(tmp_path / "data"),
        "--task",
        "zeroshot_retrieval",
        "--no_amp",
    ]
    options += ["--recall_k", "1", "5", "10", "--num_workers", "0", "--output", "{model}.json", "--model"]
    options += names.values()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    ran = subprocess.run(
        [sys.executable, "-c", command, "eval", *options],
        cwd=folders["student"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    image_GD = model.encode_image(files).numpy()
    order, flat = np.arange(len(images)), [text for own in texts for text in own]
    for tower, encode in towers.items():
        printed = json.loads((folders["student"] / f"{names[tower]}.json").read_text())["metrics"]
        found = score(image_GD, encode(flat).numpy(), order, np.repeat(order, 2), order).scores()
        for theirs, ours in (("image", "t2i"), ("text", "i2t")):
            for k in (1, 5, 10):
                assert printed[f"{theirs}_retrieval_recall@{k}"] == np.float32(found[f"{ours}_r{k}"] / 100), (tower, k)
    assert 0 < found["t2i_r10"] < 100
    seen = deepcopy(model)
    seen.clip[0].pictures = AS_SEEN
    assert (seen.encode_image(files).numpy()[::3] - image_GD[::3]).max() > 0.01  # transparent ones
