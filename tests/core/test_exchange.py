"""Exchange formats: what each writes by hand, then a thousand fuzzed rows there and back through every one."""

import codecs
import json
import os
import random
import tomllib
from dataclasses import replace

import pytest
from PIL import Image

from flux_atelier.core.dataset.exchange.exchanged import Exchanged, Target, check_rows
from flux_atelier.core.dataset.exchange.formats import FORMATS, export_rows, import_rows
from flux_atelier.core.dataset.exchange.remainder import NAME as REST
from flux_atelier.core.errors import AtelierError

SIGNS = "abc XYZ äß漢字夕🦊\u200d\ufeff\u2028\u0085\x0b\x7f,;:\"'\\/{}[]()|#<>&%$\t\n\r\u0301\u202e"
ROWS = [
    Exchanged("a.png", ("trg, a red fox", "fox"), ("fox", "snow"), "train", 1),
    Exchanged("sub/b.c.png", ("one line",), (), "train", 3),
    Exchanged("sub/d.png", (), ("only", "tags"), "validation", 1),
    Exchanged("e.png", (), (), "test", 2),
]


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """A few thousand small files, each flushed to the disk, take minutes on a slow one."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


def needs(name):
    if name == "simpletuner-parquet":
        pytest.importorskip("pyarrow", reason="no pyarrow: parquet was not tested")


def pictures(folder, rows, real=False):
    for i, row in enumerate(rows):
        file = folder / row.path
        file.parent.mkdir(parents=True, exist_ok=True)
        if real:
            Image.new("RGB", (8, 8), (i % 256, 0, 0)).save(file)
        else:
            file.write_bytes(b"picture %d" % i)
    return folder


@pytest.fixture
def target(tmp_path):
    return Target(tmp_path / "out", pictures(tmp_path / "in", ROWS))


def text(rng, most=40):
    return "".join(rng.choices(SIGNS, k=rng.randrange(most)))


def fuzzed(rng, n):
    rows = []
    for i in range(n):
        stem = "".join(rng.choices("abc äß漢🦊'#%&()[],;=+~", k=rng.randrange(6)))
        folder = rng.choice(("", "sub/", "x.png/", "10_class/", "漢 字/[a]/"))
        captions = tuple(text(rng) for _ in range(rng.choice((0, 1, 1, 2, 3))))
        tags = tuple(text(rng, 8) for _ in range(rng.choice((0, 0, 1, 4))))
        path = f"{folder}{i}{stem}.v{rng.choice(('.png', '.JPG', '.webp'))}"
        rows.append(
            Exchanged(path, captions, tags, rng.choice(("train", "validation", "test")), rng.choice((1, 2, 10)))
        )
    return sorted(rows, key=lambda r: r.path)


@pytest.mark.parametrize("name", FORMATS)
def test_a_thousand_rows_come_back_equal_and_once_more(name, tmp_path):
    needs(name)
    rows = fuzzed(random.Random(1), 1000)
    assert sum("\n" in "".join(r.captions) for r in rows) > 100
    source = pictures(tmp_path / "in", rows)
    export_rows(name, rows, Target(tmp_path / "one", source, trigger="abc"))
    first = import_rows(name, tmp_path / "one")
    assert first == rows
    files = [f for f in (tmp_path / "one").rglob("*") if f.suffix in (".txt", ".json", ".jsonl", ".toml", ".parquet")]
    before = {f: f.read_bytes() for f in files}
    export_rows(name, first, Target(tmp_path / "one", source, replace=True, trigger="abc"))
    assert files and {f: f.read_bytes() for f in files} == before
    assert import_rows(name, tmp_path / "one") == rows


WORDS = ["fox", "snow", "castle", "漢字", "ünï", "🦊", "red", "[old]", "(x:1.2)", '"quoted"', "back\\slash", "#1"]
# What a format says in its own files: (captions at most, lines within one, tags, split and repeats).
OWN = {
    "sidecar": (1, True, False, ()),
    "ai-toolkit": (2, True, False, ()),
    "kohya": (3, False, True, ("split", "repeats")),
    "simpletuner": (3, False, False, ("split", "repeats")),
    "simpletuner-parquet": (3, True, True, ("split", "repeats")),
    "imagefolder": (3, True, True, ("split", "repeats")),
}


@pytest.mark.parametrize("name", FORMATS)
def test_what_a_format_has_words_for_needs_no_hidden_file(name, tmp_path):
    needs(name)
    most, lines, tags, fields = OWN[name]
    rng, rows = random.Random(2), []
    for i in range(200):
        captions = [" ".join(rng.choices(WORDS, k=5)) for _ in range(rng.randint(1, most))]
        if lines:
            captions[0] = captions[0].replace(" ", "\n", 1)
        row = Exchanged(f"s/{i:03}.png", tuple(captions), tuple(rng.sample(["a b", "漢", "c_d"], 2)) if tags else ())
        row = replace(row, split=rng.choice(("train", "validation", "test"))) if "split" in fields else row
        rows.append(replace(row, repeats=rng.randint(1, 3)) if "repeats" in fields else row)
    source = pictures(tmp_path / "in", rows)
    assert export_rows(name, rows, Target(tmp_path / "out", source)) == 0
    assert not (tmp_path / "out" / REST).exists()
    assert import_rows(name, tmp_path / "out") == rows
    (tmp_path / "out").rename(tmp_path / "moved")
    assert import_rows(name, tmp_path / "moved") == rows


def test_sidecars_by_hand(target):
    assert export_rows("sidecar", ROWS, target) == 4
    out = target.folder
    assert (out / "a.txt").read_text() == "trg, a red fox\nfox"
    assert (out / "sub/b.c.txt").read_text() == "one line"
    assert (out / "sub/d.txt").read_text() == "only, tags" and not (out / "e.txt").exists()
    (out / REST).unlink()
    assert [r.captions for r in import_rows("sidecar", out)] == [
        ("trg, a red fox\nfox",), (), ("one line",), ("only, tags",)
    ]  # fmt: skip


@pytest.mark.parametrize(
    "raw",
    [
        "ä fox\nsnow".encode(),
        codecs.BOM_UTF8 + "ä fox\r\nsnow\r\n".encode(),
        "ä fox\rsnow".encode("utf-16"),
        codecs.BOM_UTF16_BE + "\n ä fox\nsnow".encode("utf-16-be"),
    ],
)
@pytest.mark.parametrize(("name", "expected"), [("sidecar", ("ä fox\nsnow",)), ("simpletuner", ("ä fox", "snow"))])
def test_byte_order_marks_and_line_ends_are_read(raw, name, expected, tmp_path):
    pictures(tmp_path, [Exchanged("x/a.png")])
    (tmp_path / "x/a.txt").write_bytes(raw)
    (tmp_path / "multidatabackend.json").write_text('[{"id": "x", "instance_data_dir": "x"}]')
    assert [r.captions for r in import_rows(name, tmp_path)] == [expected]


def test_a_text_in_another_encoding_is_told(tmp_path):
    pictures(tmp_path, [Exchanged("a.png")])
    (tmp_path / "a.txt").write_bytes("ä".encode("latin-1"))
    with pytest.raises(AtelierError, match=r"a\.txt is not UTF-8"):
        import_rows("sidecar", tmp_path)


def test_kohya_by_hand(target):
    export_rows("kohya", ROWS, target)
    out = target.folder
    train = tomllib.loads((out / "train.toml").read_text())["datasets"][0]["subsets"]
    assert [(s["num_repeats"], s.get("enable_wildcard")) for s in train] == [(1, True), (3, None)]
    assert train[0]["image_dir"] == out.as_posix()
    told = json.loads((out / "train_x1.json").read_text())
    assert told == {(out / "a.png").as_posix(): {"caption": "trg, a red fox\nfox", "tags": "fox, snow"}}
    assert {p.name for p in out.glob("*.toml")} == {"train.toml", "validation.toml", "test.toml"}


def test_kohya_subsets_with_caption_files_are_read(tmp_path):
    pictures(tmp_path / "img", [Exchanged("a.png"), Exchanged("b.png")])
    (tmp_path / "img/a.txt").write_text("first\nsecond\n")
    (tmp_path / "my.toml").write_text(
        "[general]\ncaption_extension = '.txt'\n[[datasets]]\nnum_repeats = 2\n"
        "[[datasets.subsets]]\nimage_dir = 'img'\nclass_tokens = 'a cat'\n"
    )
    assert import_rows("kohya", tmp_path) == [
        Exchanged("a.png", ("first",), repeats=2),
        Exchanged("b.png", ("a cat",), repeats=2),
    ]


def test_ai_toolkit_by_hand(target):
    export_rows("ai-toolkit", ROWS, replace(target, trigger="trg"))
    told = json.loads((target.folder / "a.json").read_text())
    assert told == {"caption": "[trigger], a red fox", "caption_short": "fox"}
    (target.folder / REST).unlink()
    assert import_rows("ai-toolkit", target.folder, "ohwx")[0].captions == ("ohwx, a red fox", "fox")
    assert import_rows("ai-toolkit", target.folder)[0].captions == ("[trigger], a red fox", "fox")


def test_simpletuner_by_hand(target):
    export_rows("simpletuner", ROWS, target)
    backends = json.loads((target.folder / "multidatabackend.json").read_text())
    assert [(b["id"], b["repeats"], b.get("dataset_type"), b.get("disabled")) for b in backends] == [
        ("test_x2", 1, None, True),
        ("train_x1", 0, None, None),
        ("train_x3", 2, None, None),
        ("validation_x1", 0, "eval", None),
    ]
    assert (target.folder / "train_x1/a.txt").read_text() == "trg, a red fox\nfox"
    assert (target.folder / "train_x3/sub/b.c.png").read_bytes() == b"picture 1"


def test_parquet_without_pyarrow_is_told(target, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(AtelierError, match="pip install pyarrow"):
        export_rows("simpletuner-parquet", ROWS, target)


def test_imagefolder_by_hand(target):
    assert export_rows("imagefolder", ROWS, target) == 0
    out = target.folder
    assert [json.loads(line) for line in (out / "train/metadata.jsonl").read_text().splitlines()] == [
        {"file_name": "a.png", "text": "trg, a red fox", "captions": ["trg, a red fox", "fox"],
         "tags": ["fox", "snow"], "repeats": 1},
        {"file_name": "sub/b.c.png", "text": "one line", "captions": ["one line"], "tags": [], "repeats": 3},
    ]  # fmt: skip
    assert not (out / "metadata.jsonl").exists() and (out / "test/e.png").is_file()


def test_metadata_of_others_is_read(tmp_path):
    lines = [{"file_name": "val/a.png", "caption": "x"}, {"file_name": "b.png", "prompt": "y", "width": 3}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    (tmp_path / "train").mkdir()
    (tmp_path / "train/metadata.jsonl").write_text('{"file_name": "a.png", "text": "z"}\n\n')
    assert import_rows("imagefolder", tmp_path) == [
        Exchanged("b.png", ("y",)),
        Exchanged("train/a.png", ("z",)),
        Exchanged("val/a.png", ("x",), split="validation"),
    ]


def test_the_imagefolder_is_loaded_by_datasets(tmp_path):
    datasets = pytest.importorskip("datasets", reason="no datasets: the imagefolder was not loaded by its own library")
    rows = [replace(r, path=r.path[: r.path.rindex(".")] + ".png") for r in fuzzed(random.Random(3), 60)]
    target = Target(tmp_path / "out", pictures(tmp_path / "in", rows, real=True))
    export_rows("imagefolder", rows, target)
    loaded = datasets.load_dataset("imagefolder", data_dir=str(target.folder), cache_dir=str(tmp_path / "cache"))
    got = {}
    for split, items in loaded.items():
        for item in items:
            got[item["image"].getpixel((0, 0))[0]] = (split, item["captions"], item["tags"], item["repeats"])
    assert got == {i: (r.split, list(r.captions), list(r.tags), r.repeats) for i, r in enumerate(rows)}


@pytest.mark.parametrize("name", FORMATS)
def test_what_a_person_changes_in_the_files_counts(name, target):
    needs(name)
    export_rows(name, [replace(ROWS[0], captions=(" fox ", "fox\nfox")), *ROWS[1:]], target)
    changed = 0
    for file in target.folder.rglob("*"):
        if file.suffix in (".txt", ".json", ".jsonl") and file.name not in (REST, "multidatabackend.json"):
            file.write_text(file.read_text().replace("fox", "owl"))
            changed += 1
    if name == "simpletuner-parquet":
        assert changed == 0
        return
    row = next(r for r in import_rows(name, target.folder) if r.path == "a.png")
    assert "owl" in row.captions[0] and "fox" not in "".join(row.captions)


def test_captions_that_are_there_are_not_overwritten(target):
    export_rows("sidecar", ROWS, target)
    other = [replace(ROWS[0], captions=("a blue fox",)), *ROWS[1:]]
    with pytest.raises(AtelierError, match=r"a\.txt is there already"):
        export_rows("sidecar", other, target)
    assert (target.folder / "a.txt").read_text() == "trg, a red fox\nfox"
    export_rows("sidecar", other, replace(target, replace=True))
    assert import_rows("sidecar", target.folder)[0] == other[0]
    export_rows("sidecar", [replace(other[0], captions=(), tags=())], replace(target, replace=True))
    assert (target.folder / "a.txt").read_text() == ""


def test_exporting_where_the_pictures_are_leaves_them(tmp_path):
    root = pictures(tmp_path, ROWS)
    export_rows("sidecar", ROWS, Target(root, root))
    assert import_rows("sidecar", root) == sorted(ROWS, key=lambda r: r.path)
    assert (root / "a.png").read_bytes() == b"picture 0"


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([ROWS[0], ROWS[0]], "is there twice"),
        ([Exchanged("../a.png")], "leads out"),
        ([Exchanged("/a.png")], "leads out"),
        ([Exchanged("C:/a.png")], "leads out"),
        ([Exchanged("a\\b.png")], "leads out"),
        ([Exchanged("")], "leads out"),
        ([Exchanged("a.png", split="dev")], "Use train, validation or test"),
        ([Exchanged("a.png", repeats=0)], "has 0 repeats"),
        ([Exchanged("a.png", ("\ud800",))], "half a character"),
    ],
)
def test_rows_that_no_format_holds_are_refused(rows, words):
    with pytest.raises(AtelierError, match=words):
        check_rows(rows)


def test_pictures_that_would_share_a_caption_file_are_told(tmp_path):
    rows = [Exchanged("a.png", ("x",)), Exchanged("a.jpg", ("y",))]
    with pytest.raises(AtelierError, match=r"would share the caption file a\.txt"):
        export_rows("sidecar", rows, Target(tmp_path / "out", pictures(tmp_path / "in", rows)))


@pytest.mark.parametrize(
    ("name", "file", "raw", "words"),
    [
        ("kohya", None, "", "no TOML file"),
        ("kohya", "x.toml", "[", "is not TOML"),
        ("kohya", "x.toml", "[[datasets]]\n[[datasets.subsets]]\nimage_dir='no'", "not there"),
        ("simpletuner", None, "", "has no multidatabackend.json"),
        ("simpletuner", "multidatabackend.json", "{", "not a JSON list"),
        ("imagefolder", None, "", "has no metadata.jsonl"),
        ("imagefolder", "metadata.jsonl", '{"a": 1}', "line 1, is not"),
        ("imagefolder", "metadata.jsonl", '{"file_name": "../x.png"}', "leads out"),
        ("ai-toolkit", "a.json", "[]", "not a JSON object"),
        ("sidecar", REST, "{", "is damaged"),
        ("sidecar", REST, '{"rows": [1]}', "is damaged"),
        ("exif", None, "", "no format"),
    ],
)
def test_damaged_and_missing_files_are_told(name, file, raw, words, tmp_path):
    pictures(tmp_path, [Exchanged("a.png")])
    if file:
        (tmp_path / file).write_text(raw)
    with pytest.raises(AtelierError, match=words):
        import_rows(name, tmp_path)


def test_a_missing_picture_and_a_wrong_one_are_told(target):
    with pytest.raises(AtelierError, match="no picture"):
        export_rows("sidecar", [Exchanged("no.png")], target)
    target.folder.mkdir()
    (target.folder / "a.png").write_bytes(b"other")
    with pytest.raises(AtelierError, match="is another picture"):
        export_rows("sidecar", ROWS, target)
