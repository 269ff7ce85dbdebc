"""Names of pictures, across corpora, and of members of tars."""

from pathlib import Path

import pytest

from mclip_kit.data.images import container, picture_id, read_bytes, tar_member


@pytest.mark.parametrize(
    ("name", "source", "expected"),
    [
        ("COCO_val2014_000000391895.jpg", None, "coco:391895"),
        ("COCO_val2014_000000391895#zhm#0", "flickr30k", "coco:391895"),
        ("val2014/coco_train2014_000000000000.JPG", "coco", "coco:0"),
        ("391895", "coco", "coco:391895"),
        ("000000391895.jpg", "coco", "coco:391895"),
        ("0000391895", "flickr30k", "flickr30k:0000391895"),
        ("images/1000092795.jpg#3", "flickr30k", "flickr30k:1000092795"),
        ("Deep/aB.PNG", "web", "web:ab"),
        (" aB.png ", None, "aB.png"),
        ("train/000000.jpg", None, "train/000000.jpg"),
        (r"val\000000.jpg#2", None, "val/000000.jpg"),
        ("no#7.jpg", "web", "web:no#7"),
        ("mr.smith", None, "mr.smith"),
        ("https://x.org/a.jpg#b", "coco", "https://x.org/a.jpg#b"),
    ],
)
def test_names_of_one_picture_are_one(name, source, expected):
    assert picture_id(name, source) == expected


def test_a_tar_member_is_read_by_offset_and_size(tmp_path: Path) -> None:
    tar = tmp_path / "0.tar"
    tar.write_bytes(b"before, picture, after")
    name = Path(tar_member(tar, 8, 7))
    assert str(name) == f"{tar}@8+7"
    assert container(name) == container(tar) == tar
    assert read_bytes(name) == b"picture"
    assert read_bytes(tar) == b"before, picture, after"
    with pytest.raises(OSError, match="the tar ends before"):
        read_bytes(Path(tar_member(tar, 20, 7)))
