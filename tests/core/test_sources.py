"""Sources: order, splits, tables, archives that attack, parquet, WikiArt and video."""

import io
import json
import random
import sys
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from flux_atelier.core.dataset.folder import load_folder
from flux_atelier.core.dataset.scan import finish, scan
from flux_atelier.core.dataset.sources import list_folder, open_source, read_details
from flux_atelier.core.dataset.store import Store
from flux_atelier.core.dataset.unpack import STYLES, Take, known_name, unpack_archive
from flux_atelier.core.dataset.view import View
from flux_atelier.core.errors import AtelierError


def picture(shade: int = 100) -> bytes:
    held = io.BytesIO()
    Image.new("RGB", (16, 8), (shade, 40, 40)).save(held, "PNG")
    return held.getvalue()


def write(root, *paths: str) -> None:
    for i, path in enumerate(paths):
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture(i))


def test_order_is_that_of_paths_however_files_were_made(tmp_path):
    names = ["b.png", "a/z.png", "a.png", "a/b/c.PNG", "Z.png", "ä.png", "a b.png", "10.png", "9.png"]
    random.Random(0).shuffle(names)
    write(tmp_path, *names, ".hidden.png", ".cache/x.png", "notes.md")
    assert [i.path for i in list_folder(tmp_path).items] == sorted(names)


def test_a_view_of_a_folder_is_what_load_folder_reads(tmp_path):
    root = tmp_path / "p"
    write(root, "one.png", "sub.x/two words.webp_1.png", "three.png", "three.mask.png", "one.control.png")
    (root / "one.txt").write_text("a first\npicture\n", encoding="utf-8-sig")
    (root / "sub.x" / "two words.webp_1.caption").write_text("zweites Bild ü")
    (root / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0broken")
    with Store(tmp_path / "s.db") as store:
        finish(scan(store, list_folder(root)))
        ours = View.of(store).dataset()
    theirs = load_folder(root)
    assert [s.path for s in ours.skipped] == [s.path for s in theirs.skipped] == ["broken.jpg"]

    def told(dataset):
        return {r.path: (r.digest, r.width, r.height, r.captions, r.split, r.mask, r.control) for r in dataset.rows}

    assert told(ours) == told(theirs)
    assert told(ours)["three.png"][5] is not None and told(ours)["one.png"][6] is not None


@pytest.mark.parametrize(
    ("path", "split", "repeats"),
    [
        ("train/a.png", "train", 1),
        ("validation/a.png", "validation", 1),
        ("dev/a.png", "validation", 1),
        ("Test/10_cat/a.png", "test", 10),
        ("other/3_a/a.png", "train", 3),
        ("0_x/a.png", "train", 1),
        ("a.png", "train", 1),
    ],
)
def test_folders_name_splits_and_repeats(tmp_path, path, split, repeats):
    write(tmp_path, path, "train/other.png")
    item = next(i for i in list_folder(tmp_path).items if i.path == path)
    assert (item.split, item.repeats) == (split, repeats)


def test_a_folder_called_test_is_no_split_where_there_is_no_train(tmp_path):
    write(tmp_path, "test/a.png", "val/b.png")
    assert {i.split for i in list_folder(tmp_path).items} == {"train"}


def test_metadata_tables_give_captions_tags_and_columns(tmp_path):
    write(tmp_path, "train/a.png", "train/sub/b.png", "test/c.png", "train/d.png")
    lines = [
        {"file_name": "a.png", "text": "first\nsecond ü\u2028x", "year": 1872, "tags": ["water", "boat"]},
        {"file_name": "sub/b.png", "captions": ["one", "two"]},
    ]
    (tmp_path / "train" / "metadata.jsonl").write_text(
        "\n".join(json.dumps(x, ensure_ascii=False) for x in lines) + "\n"
    )
    (tmp_path / "train" / "a.txt").write_text("beside it")
    (tmp_path / "test" / "metadata.csv").write_text('file_name,caption,tags\nc.png,"with, comma\nand line","x, y"\n')
    source = list_folder(tmp_path)
    found = {i.path: read_details(source, i) for i in source.items}
    assert [c.text for c in found["train/a.png"].captions] == ["beside it", "first\nsecond ü\u2028x"]
    assert found["train/a.png"].columns == {"year": 1872} and found["train/a.png"].tags == ("water", "boat")
    assert [c.text for c in found["train/sub/b.png"].captions] == ["one", "two"]
    assert [c.text for c in found["test/c.png"].captions] == ["with, comma\nand line"]
    assert found["test/c.png"].tags == ("x", "y") and found["train/d.png"].captions == ()


def test_a_broken_table_names_its_line(tmp_path):
    write(tmp_path, "a.png")
    for text, message in (('{"file_name": "a.png"}\n{oops', "Line 2 of"), ('{"text": "x"}', "without file_name")):
        (tmp_path / "metadata.jsonl").write_text(text)
        source = list_folder(tmp_path)
        with pytest.raises(AtelierError, match=message):
            read_details(source, source.items[0])


def pack(file, members: dict[str, bytes]):
    if file.suffix == ".zip":
        with zipfile.ZipFile(file, "w") as archive:
            for name, data in members.items():
                archive.writestr(name, data)
    else:
        with tarfile.open(file, "w:gz" if file.suffix == ".tgz" else "w") as archive:
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return file


@pytest.mark.parametrize("ending", ["zip", "tar", "tgz"])
def test_archives_read_like_folders(tmp_path, ending):
    members = {"in/b.png": picture(1), "in/a.png": picture(2), "in/a.txt": b"hello", "run.exe": b"MZ", "in/x.py": b""}
    file = pack(tmp_path / f"set.{ending}", members)
    source = open_source(file, tmp_path / "cache")
    assert [i.path for i in source.items] == ["in/a.png", "in/b.png"]
    assert read_details(source, source.items[0]).captions[0].text == "hello"
    assert source.root.is_relative_to(tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.exe")) and not list((tmp_path / "cache").rglob("*.py"))
    (source.root / "in" / "mark.png").write_bytes(picture())
    assert len(open_source(file, tmp_path / "cache").items) == 3  # not unpacked again
    pack(file, {"c.png": picture(3)})
    assert [i.path for i in open_source(file, tmp_path / "cache").items] == ["c.png"]


@pytest.mark.parametrize(
    "name", ["../out.png", "a/../../out.png", "/tmp/out.png", "..\\out.png", "C:\\out.png", "C:out.png"]
)
@pytest.mark.parametrize("ending", ["zip", "tar"])
def test_a_member_that_leads_out_is_refused(tmp_path, name, ending):
    file = pack(tmp_path / f"bad.{ending}", {"good.png": picture(), name: picture()})
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(AtelierError, match="leads out of its folder"):
        unpack_archive(file, tmp_path / "cache")
    assert sorted(p for p in tmp_path.rglob("*") if p.name != "cache") == before
    assert list((tmp_path / "cache").iterdir()) == []


def test_links_in_a_tar_are_passed_over(tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(picture())
    with tarfile.open(tmp_path / "links.tar", "w") as archive:
        for name, kind in (("sym.png", tarfile.SYMTYPE), ("hard.png", tarfile.LNKTYPE), ("pipe.png", tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, str(secret)
            archive.addfile(info)
        info = tarfile.TarInfo("real.png")
        info.size = len(picture())
        archive.addfile(info, io.BytesIO(picture()))
    assert [i.path for i in open_source(tmp_path / "links.tar", tmp_path / "cache").items] == ["real.png"]


@pytest.mark.parametrize("ending", ["zip", "tar", "tgz"])
def test_a_damaged_archive_leaves_nothing(tmp_path, ending):
    noise = np.random.default_rng(0).bytes(20000)
    file = pack(tmp_path / f"set.{ending}", {"a.png": picture(), "b.png": noise})
    data = bytearray(file.read_bytes())
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(AtelierError, match="cannot be unpacked"):
        open_source(file, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_folder_and_a_file_of_one_name_are_refused(tmp_path):
    file = pack(tmp_path / "set.zip", {"a.png": picture(), "a.png/b.png": picture()})
    with pytest.raises(AtelierError, match="cannot be unpacked"):
        open_source(file, tmp_path / "cache")


@pytest.mark.parametrize("name", ["absent", "notes.md"])
def test_what_is_no_source_is_told(tmp_path, name):
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(AtelierError, match="Give a folder"):
        open_source(tmp_path / name, tmp_path / "cache")


def test_wikiart_labels():
    assert (len(STYLES), STYLES[12], STYLES[20]) == (27, "Impressionism", "Post_Impressionism")
    assert sorted(STYLES) == STYLES
    assert known_name("post impressionism", STYLES, "style") == (20, "Post_Impressionism")
    with pytest.raises(AtelierError, match=r"Did you mean Impressionism"):
        known_name("impresionism", STYLES, "style")


def test_wikiart_folder_by_style_and_artist(tmp_path):
    write(
        tmp_path,
        "Impressionism/claude-monet_water-1.jpg",
        "Impressionism/edgar-degas_x-2.jpg",
        "Cubism/claude-monet_y-3.jpg",
    )

    def paths(**take):
        return [i.path for i in open_source(tmp_path, tmp_path / "cache", Take(**take)).items]

    assert paths(style="impressionism") == [
        "Impressionism/claude-monet_water-1.jpg",
        "Impressionism/edgar-degas_x-2.jpg",
    ]
    assert paths(artist="Claude Monet") == ["Cubism/claude-monet_y-3.jpg", "Impressionism/claude-monet_water-1.jpg"]
    assert paths(style="Impressionism", artist="claude-monet") == ["Impressionism/claude-monet_water-1.jpg"]
    assert len(paths()) == 3
    with pytest.raises(AtelierError, match="There is no style Rococo"):
        paths(style="Rococo")


def test_wikiart_parquet_by_style_and_artist(tmp_path):
    pa = pytest.importorskip("pyarrow", reason="no pyarrow: parquet was not tested")
    parquet = pytest.importorskip("pyarrow.parquet")
    names = {"artist": ["Unknown Artist", "claude-monet", "edgar-degas"]}
    features = {"artist": {"names": names["artist"], "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    table = pa.table(
        {
            "image": [{"bytes": picture(i), "path": None} for i in range(12)],
            "artist": [i % 3 for i in range(12)],
            "style": [12 if i < 7 else 20 for i in range(12)],
            "text": [f"picture {i}" for i in range(12)],
        }
    ).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    (tmp_path / "data").mkdir()
    parquet.write_table(table, tmp_path / "data" / "train-0.parquet", row_group_size=4)

    def shades(**take):
        source = open_source(tmp_path / "data", tmp_path / "cache", Take(**take))
        found = [read_details(source, i) for i in source.items]
        return [Image.open(source.root / i.path).getpixel((0, 0))[0] for i in source.items], found

    shown, found = shades(style="Impressionism", artist="claude monet")
    assert shown == [1, 4]
    assert found[0].columns == {"artist": "claude-monet", "style": "Impressionism"}
    assert found[1].captions[0].text == "picture 4"
    assert shades(style="Post-Impressionism")[0] == [7, 8, 9, 10, 11]
    assert shades()[0] == list(range(12))
    with pytest.raises(AtelierError, match="has no picture of Rococo"):
        shades(style="Rococo")
    with pytest.raises(AtelierError, match="There is no artist"):
        shades(artist="bob")


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    for name in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(AtelierError, match="pip install pyarrow"):
        open_source(tmp_path / "a.parquet", tmp_path / "cache")


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """Three seconds at 8 frames a second: grey, then white from 1.5 s; lying on its side in no way."""
    import av

    file = tmp_path_factory.mktemp("film") / "film.mp4"
    with av.open(str(file), "w") as out:
        stream = out.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(24):
            pixels = np.full((48, 64, 3), 60 if i < 12 else 240, np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        out.mux(stream.encode(None))
    return file


@pytest.mark.parametrize(
    ("take", "times"),
    [
        (Take(seconds=1.0), [0, 1000, 2000]),
        (Take(seconds=0.5), [0, 500, 1000, 1500, 2000, 2500]),
        (Take(seconds=0.3), [0, 375, 625, 1000, 1250, 1500, 1875, 2125, 2500, 2750]),
        (Take(seconds=99), [0]),
        (Take(scene=0.2), [0, 1500]),
        (Take(scene=0.9), [0]),
    ],
)
def test_frames_by_time_and_by_scene(film, tmp_path, take, times):
    source = open_source(film, tmp_path, take)
    assert [i.path for i in source.items] == [f"film_{t:09d}.png" for t in times]
    with Image.open(source.root / source.items[-1].path) as last:
        assert last.size == (64, 48)
        assert abs(last.getpixel((30, 20))[0] - (240 if times[-1] >= 1500 else 60)) < 4


def test_a_file_that_is_no_video_is_told(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"not a film")
    with pytest.raises(AtelierError, match="cannot be opened as a video"):
        open_source(tmp_path / "a.mp4", tmp_path / "cache")
