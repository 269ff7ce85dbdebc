"""What is exported is loaded by open_clip's own functions, and scored by clip-benchmark's own command."""

import io
import json
import os
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
from click.testing import CliRunner
from PIL import Image
from torch import Tensor

from mclip_kit.cli import cli
from mclip_kit.config.model import AS_OPEN_CLIP, AS_SEEN
from mclip_kit.data.captions import read_captions
from mclip_kit.data.tokenizer import XlmrTokenizer
from mclip_kit.errors import CheckpointError
from mclip_kit.evaluate.retrieval import score
from mclip_kit.models.clip import build_clip
from mclip_kit.models.multilingual_clip import MultilingualClip
from mclip_kit.models.text_encoder import new_encoder
from tests import tiny

TEXTS = ["red square left, shade 3", "Quadrat grün links, Ton 1", "carré bleu haut", "red"]
RESNET = {**tiny.TEACHER, "vision_cfg": {"image_size": 32, "patch_size": None, "width": 8, "layers": [1, 1, 1, 1]}}
TEXT_BIAS = {**tiny.TEACHER, "text_cfg": {**tiny.TEACHER["text_cfg"], "proj_bias": True}}
NO_MAP = {**tiny.TEACHER, "text_cfg": {**tiny.TEACHER["text_cfg"], "proj_type": "none"}}


def build(data: Path, projector: dict[str, Any], clip_projector: str, width: int, teacher: Any) -> MultilingualClip:
    """A model of tiny towers in which every bias, norm and running statistic is something."""
    torch.manual_seed(0)
    encoder = new_encoder(1, width, 2, 32, 0.1, 32, XlmrTokenizer(data / "bitext"))
    model = MultilingualClip(build_clip(teacher), encoder, projector, clip_projector).eval()
    with torch.no_grad():
        for weight in (w for w in model.parameters() if w.dim() == 1):
            weight.add_(0.3 * torch.randn_like(weight))
        for name, statistic in model.named_buffers():
            if "running" in name:
                statistic.uniform_(0.3, 3)
    return model


def strangers(folder: Path, texts: list[str] = TEXTS) -> tuple[Tensor, Tensor]:
    """Text and image embeddings as anyone computes them who has open_clip and the folder."""
    loaded, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    loaded.eval()
    with torch.no_grad():
        pixels = torch.stack([transform(picture) for picture in pictures()])
        text_ND = loaded.encode_text(tokenizer(texts), normalize=True)
        return text_ND, loaded.encode_image(pixels, normalize=True)


def pictures() -> list[Image.Image]:
    draw = np.random.default_rng(5)
    return [Image.fromarray(draw.integers(0, 256, (20, 30, 3), np.uint8)) for _ in range(3)]


STUDENTS: list[tuple[dict[str, Any], str, int]] = [
    ({"kind": "linear", "pool": "mean"}, "none", 12),  # fewer states than embeddings
    ({"kind": "linear", "pool": "cls"}, "none", 24),
    ({"kind": "linear", "pool": "mean", "noise": 0.1}, "linear", 24),
    ({"kind": "mlp", "pool": "mean", "hidden": 13}, "none", 12),  # as many units as fit beside the bias
    ({"kind": "altclip", "pool": "cls"}, "none", 24),
    ({"kind": "altclip", "pool": "cls"}, "linear", 12),
    ({"kind": "transformer", "pool": "mean", "layers": 2}, "linear", 24),
    ({"kind": "transformer", "pool": "cls", "layers": 1}, "none", 24),
]


@pytest.mark.parametrize(("projector", "clip_projector", "width"), STUDENTS)
def test_open_clip_gives_the_students_embeddings(squares, tmp_path, projector, clip_projector, width):
    model = build(squares, projector, clip_projector, width, tiny.TEACHER)
    export_open_clip(model, tmp_path / "out")
    text_ND, image_ND = strangers(tmp_path / "out")
    torch.testing.assert_close(text_ND, model.encode_text(TEXTS), atol=1e-5, rtol=0)
    torch.testing.assert_close(image_ND, model.encode_image(pictures()), atol=1e-5, rtol=0)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_open_clip_cleans_texts_and_cuts_them_at_the_context(squares, tmp_path):
    model = build(squares, {"kind": "linear", "pool": "mean"}, "none", 24, tiny.TEACHER)
    export_open_clip(model, tmp_path / "out", context=6)
    theirs_ND, _ = strangers(tmp_path / "out", ["“red”", "red &amp; blue"])
    cut = [ids if len(ids) <= 6 else [*ids[:5], ids[-1]] for ids in model.student_tokens(['"red"', "red & blue"])]
    with torch.no_grad():
        ours_ND = torch.nn.functional.normalize(model._embed_tokens([np.array(ids) for ids in cut]), dim=-1)
    torch.testing.assert_close(theirs_ND, ours_ND, atol=1e-5, rtol=0)


def test_dirty_texts_have_the_same_embeddings_if_the_model_cleans_them(squares, tmp_path):
    model = build(squares, {"kind": "linear", "pool": "mean"}, "none", 24, tiny.TEACHER)
    export_open_clip(model, tmp_path / "raw")
    assert "text_cleaning: none" in (tmp_path / "raw" / "README.md").read_text()
    plain_ND = model.encode_text(TEXTS)
    special_ND = strangers(tmp_path / "raw", SPECIAL)[0]  # names of special tokens are text with and without cleaning
    torch.testing.assert_close(special_ND, model.encode_text(SPECIAL), atol=1e-5, rtol=0)
    assert (strangers(tmp_path / "raw", DIRTY)[0] - model.encode_text(DIRTY)).abs().max() > 0.01
    model.text_cleaning = "ftfy"
    export_open_clip(model, tmp_path / "out")
    torch.testing.assert_close(strangers(tmp_path / "out", DIRTY)[0], model.encode_text(DIRTY), atol=1e-5, rtol=0)
    assert torch.equal(model.encode_text(TEXTS), plain_ND)
    assert "text_cleaning" not in (tmp_path / "out" / "README.md").read_text()
    content = json.loads((tmp_path / "out" / "open_clip_config.json").read_text())
    assert content["mclip_kit"] == {"text_cleaning": "ftfy", "pictures": AS_OPEN_CLIP.model_dump()}


def test_what_open_clip_does_otherwise_with_pictures_is_told(squares, tmp_path):
    model = build(squares, {"kind": "linear", "pool": "mean"}, "none", 24, tiny.TEACHER)
    assert not [note for note in notes(model, "teacher", 77) if "Pictures" in note]
    model.clip[0].pictures = AS_SEEN
    (note,) = notes(model, "teacher", 77)
    for word in ("EXIF", "transparent", "16-bit"):
        assert word in note
    assert any("cuts them at 5 tokens" in note for note in notes(model, "student", 5))
    export_open_clip(model, tmp_path / "out", "teacher")
    assert note in (tmp_path / "out" / "README.md").read_text()


def test_a_moved_folder_is_mended_by_the_command_in_its_readme(squares, tmp_path):
    model = build(squares, {"kind": "linear", "pool": "mean"}, "none", 24, tiny.TEACHER)
    export_open_clip(model, tmp_path / "out")
    moved = (tmp_path / "out").rename(tmp_path / "else where")
    with pytest.raises(OSError, match="out"):
        strangers(moved)
    command = (moved / "README.md").read_text().split("```")[1].strip()
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(command, shell=True, cwd=moved, env=environment, check=True)
    torch.testing.assert_close(strangers(moved)[0], model.encode_text(TEXTS), atol=1e-5, rtol=0)


@pytest.mark.parametrize("clip_projector", ["none", "linear"])
@pytest.mark.parametrize("teacher", [tiny.TEACHER, RESNET, TEXT_BIAS], ids=["vit", "resnet", "text bias"])
def test_open_clip_gives_the_teachers_embeddings_in_the_models_space(squares, tmp_path, teacher, clip_projector):
    model = build(squares, {"kind": "transformer", "pool": "eos"}, clip_projector, 24, teacher)
    export_open_clip(model, tmp_path / "out", "teacher")
    text_ND, image_ND = strangers(tmp_path / "out")
    assert text_ND.shape[1] == model.width
    torch.testing.assert_close(text_ND, model.encode_teacher_text(TEXTS), atol=1e-5, rtol=0)
    torch.testing.assert_close(image_ND, model.encode_image(pictures()), atol=1e-5, rtol=0)


def test_a_norm_that_lets_a_dimension_go_is_no_obstacle(squares, tmp_path):
    model = build(squares, {"kind": "linear", "pool": "mean"}, "none", 24, tiny.TEACHER)
    with torch.no_grad():
        model.encoder.model.encoder.layer[-1].output.LayerNorm.weight[3] = 0
    export_open_clip(model, tmp_path / "out")
    torch.testing.assert_close(strangers(tmp_path / "out")[0], model.encode_text(TEXTS), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("projector", "message"),
    [
        ({"kind": "transformer", "pool": "eos"}, "cannot represent pool: eos"),
        ({"kind": "altclip", "pool": "mean"}, "cannot represent altclip with pool: mean"),
        ({"kind": "mlp", "pool": "mean", "hidden": 20}, "20 units, .* cannot represent the mlp's 21"),
    ],
)
def test_a_head_that_open_clip_has_no_form_for_is_named_and_nothing_is_written(squares, tmp_path, projector, message):
    model = build(squares, projector, "none", 24, tiny.TEACHER)
    with pytest.raises(CheckpointError, match=message):
        export_open_clip(model, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_embeddings_that_would_differ_are_not_exported(squares, tmp_path):
    model = build(squares, {"kind": "transformer", "pool": "mean"}, "none", 24, tiny.TEACHER)
    model.encoder.config.hidden_act = "relu"  # the config's layers are the projector's too, which are GELU's
    with pytest.raises(CheckpointError, match="nothing exported: open_clip's text embeddings differ"):
        export_open_clip(model, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_clip_whose_last_map_is_not_known_cannot_take_the_projector(squares, tmp_path):
    model = build(squares, {"kind": "linear", "pool": "mean"}, "linear", 24, NO_MAP)
    with pytest.raises(CheckpointError, match="the CLIP's text tower ends in no linear map"):
        export_open_clip(model, tmp_path / "out", "teacher")
    export_open_clip(model, tmp_path / "out", "student")  # has another text tower


def test_the_folder_is_a_teacher_of_ours_wherever_it_goes(squares, tmp_path):
    model = build(squares, {"kind": "linear", "pool": "mean"}, "none", 24, tiny.TEACHER)
    export_open_clip(model, tmp_path / "out")
    clip = build_clip(f"local-dir:{(tmp_path / 'out').rename(tmp_path / 'elsewhere')}")
    with torch.no_grad():
        text_ND = torch.nn.functional.normalize(clip.eval().model.text(clip.tokenize(TEXTS)), dim=-1)
    torch.testing.assert_close(text_ND, model.encode_text(TEXTS), atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def saved(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[MultilingualClip, Path]:
    """A model of AltCLIP's head, and its folder."""
    teacher = {**tiny.TEACHER, "text_cfg": {**tiny.TEACHER["text_cfg"], "context_length": 40}}  # cut texts would tie
    model = build(squares, {"kind": "altclip", "pool": "cls"}, "linear", 24, teacher)
    folder = tmp_path_factory.mktemp("saved")
    model.save(folder / "model")
    return model, folder


def typed(*words: str | Path) -> Any:
    return CliRunner().invoke(cli, [str(word) for word in words])


def test_the_command_says_how_to_load_what_it_wrote(saved, tmp_path):
    _, folder = saved
    done = typed("export", "open-clip", folder / "model", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert f"local-dir:{tmp_path / 'out'}" in done.output
    again = typed("export", "open-clip", folder / "model", "--out", tmp_path / "out")
    assert again.exit_code == 2
    assert f"{tmp_path / 'out'}: exists already" in again.output


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


def test_clip_benchmarks_command_prints_our_metrics_to_the_last_digit(saved, squares, tmp_path):
    """Also for dirty texts, and for odd pictures if the model takes them as open_clip does."""
    pytest.importorskip("clip_benchmark", reason="the extra `dev` is not installed")
    model, _ = saved
    model.text_cleaning = "ftfy"
    captions = read_captions(squares)
    images = np.unique(captions.images)[::2]
    texts, files = webdataset(tmp_path / "data", captions, images)
    towers = {"student": model.encode_text, "teacher": model.encode_teacher_text}
    for tower in towers:
        export_open_clip(model, tmp_path / tower, tower)
    command = "import sys; from clip_benchmark.cli import main; sys.exit(main())"
    options = ["--dataset", "wds/squares", "--dataset_root", "data", "--task", "zeroshot_retrieval", "--no_amp"]
    options += ["--recall_k", "1", "5", "10", "--num_workers", "0", "--output", "{model}.json", "--model"]
    options += [f"local-dir:{tower}" for tower in towers]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    ran = subprocess.run(
        [sys.executable, "-c", command, "eval", *options],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    image_GD = model.encode_image(files).numpy()
    order, flat = np.arange(len(images)), [text for own in texts for text in own]
    for tower, encode in towers.items():
        printed = json.loads((tmp_path / f"local-dir:{tower}.json").read_text())["metrics"]
        found = score(image_GD, encode(flat).numpy(), order, np.repeat(order, 2), order).scores()
        for theirs, ours in (("image", "t2i"), ("text", "i2t")):
            for k in (1, 5, 10):
                assert printed[f"{theirs}_retrieval_recall@{k}"] == np.float32(found[f"{ours}_r{k}"] / 100), (tower, k)
    assert 0 < found["t2i_r10"] < 100
    seen = deepcopy(model)
    seen.clip[0].pictures = AS_SEEN
    assert (seen.encode_image(files).numpy()[::3] - image_GD[::3]).max() > 0.01  # transparent ones
