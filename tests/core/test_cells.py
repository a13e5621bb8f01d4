"""The test bench's axes, keys, pictures on disk and sheets."""

from dataclasses import replace

import pytest
from PIL import Image, ImageFont

from flux_atelier.core.errors import AtelierError
from flux_atelier.core.evaluation import sheet
from flux_atelier.core.evaluation.cells import (
    Axis,
    CellStore,
    Patch,
    Settings,
    cell_key,
    cells_of,
    patches_of,
    read_axes,
    read_axis,
    read_loras,
)


@pytest.mark.parametrize(
    ("kind", "text", "values"),
    [
        ("strength", "0, 0.5, 1", (0.0, 0.5, 1.0)),
        ("strength", "0..1 step 0.25", (0.0, 0.25, 0.5, 0.75, 1.0)),
        ("strength", "0..0.3 step .1", (0.0, 0.1, 0.2, 0.3)),  # in floats the last would be 0.30000000000000004
        ("strength", "1..0 step 0.5\n-1", (1.0, 0.5, 0.0, -1.0)),
        ("strength", "0..1 step 0.4", (0.0, 0.4, 0.8)),
        ("seed", "3..5; 9", (3, 4, 5, 9)),
        ("steps", "4\n\n8", (4, 8)),
        ("guidance", "1e1", (10.0,)),
        ("blocks", "all\nsingle.0-3 = 0, double = 0.5", ("", "single.0-3 = 0, double = 0.5")),
        ("prompt", "a red house, at sea\n  a tree ", ("a red house, at sea", "a tree")),
        ("lora", "none\nlora0 + b.safetensors=0.5", ("", "lora0 + b.safetensors=0.5")),
    ],
)
def test_values_are_read(kind, text, values):
    assert read_axis("X", kind, text) == Axis(kind, values)


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        ("strength", "", "has no values"),
        ("strength", " , ,\n", "has no values"),
        ("strength", "0, half", "'half', which is no number"),
        ("strength", "nan", "a number from -20 to 20"),
        ("strength", "1e99", "a number from -20 to 20"),
        ("seed", "1.5", "a whole number from 0"),
        ("seed", "-1", "a whole number from 0"),
        ("steps", "0", "a whole number from 1"),
        ("strength", "0..1 step 0", "a step above 0"),
        ("strength", "0..1 step 0.0000000001", "a wider step"),
        ("prompt", "\n \n", "has no values"),
        ("colour", "red", "Choose one of none, lora"),
    ],
)
def test_wrong_values_are_told(kind, text, words):
    with pytest.raises(AtelierError, match=words):
        read_axis("X", kind, text)


def test_the_same_kind_twice_and_too_many_cells_are_refused():
    with pytest.raises(AtelierError, match="Two axes are seed"):
        read_axes(["seed", "none", "seed"], ["1", "", "2"], {})
    with pytest.raises(AtelierError, match="21 x 20 x 1 = 420 cells"):
        read_axes(["seed", "steps", "none"], ["0..20", "1..20", ""], {})
    assert len(read_axes(["seed", "steps", "none"], ["1..20", "1..20", ""], {})) == 3


def test_an_empty_axis_takes_its_defaults():
    axes = read_axes(["lora", "prompt", "none"], ["", "", "left over"], {"lora": ["lora0", "lora1"], "prompt": ["p"]})
    assert axes == (Axis("lora", ("lora0", "lora1")), Axis("prompt", ("p",)), Axis())


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", []),
        ("lora0", [("lora0", 1.0)]),
        ("lora0=0.5 + flat/a+b=c.safetensors=-1", [("lora0", 0.5), ("flat/a+b=c.safetensors", -1.0)]),
        ("a=b.safetensors", [("a=b.safetensors", 1.0)]),
    ],
)
def test_loras_are_read(text, found):
    assert read_loras(text) == found


def test_a_lora_without_a_name_is_told():
    with pytest.raises(AtelierError, match="a LoRA without a name"):
        read_loras("lora0 + =0.5")


def test_cells_go_page_by_page_and_line_by_line():
    axes = (Axis("seed", (1, 2)), Axis("prompt", ("p", "q")), Axis("strength", (0.5, 1.0)))
    cells = cells_of(axes, Settings(lora="lora0", steps=7))
    assert [(c.z, c.y, c.x) for c in cells] == [(z, y, x) for z in (0, 1) for y in (0, 1) for x in (0, 1)]
    assert cells[5].settings == Settings("lora0", 1.0, "", "p", 2, 3.5, 7)


BASE = Settings("a", 0.5, "single = 0", "a house", 3, 3.5, 20)
COMMON = {"model": "m", "text": "t", "vae": "v", "width": 64, "height": 64, "sampler": "euler", "scheduler": "simple"}
DIGESTS = {"a": "1", "b": "2", "renamed": "1"}


def key_of(settings=BASE, **common) -> str:
    return cell_key(settings, patches_of(settings, DIGESTS), COMMON | common)


def test_a_key_stands_for_all_that_the_picture_depends_on():
    changes = dict(lora="b", strength=1.0, blocks="", prompt="a tree", seed=4, guidance=1.0, steps=21)
    keys = {key_of(replace(BASE, **{name: value})) for name, value in changes.items()}
    keys |= {key_of(**{name: f"{value}1"}) for name, value in COMMON.items()}
    assert len(keys | {key_of()}) == len(changes) + len(COMMON) + 1


def test_a_key_does_not_depend_on_what_does_nothing():
    assert key_of(replace(BASE, lora="renamed")) == key_of()
    assert key_of(replace(BASE, lora="a=0.5", strength=1.0)) == key_of()
    nothing = {key_of(replace(BASE, lora=lora, strength=0.0)) for lora in ("a", "b", "a + b", "")}
    assert nothing == {key_of(replace(BASE, lora="", blocks="double = 0"))}
    assert patches_of(BASE, DIGESTS) == (Patch("1", 0.5, "single = 0"),)


def gradient(size=(24, 16)) -> Image.Image:
    return Image.frombytes("RGB", size, bytes(i * 7 % 256 for i in range(size[0] * size[1] * 3)))


def test_a_picture_comes_back_and_a_damaged_one_does_not(tmp_path):
    store, picture = CellStore(tmp_path), gradient()
    assert store.get("ab12") is None
    path = store.put("ab12", picture)
    assert [p.name for p in tmp_path.rglob("*.*")] == ["ab12.png"]
    assert store.get("ab12").tobytes() == picture.tobytes()
    whole = path.read_bytes()
    spoilt = [whole[:n] for n in range(0, len(whole), 9)]
    spoilt += [whole[:n] + bytes([whole[n] ^ 1]) + whole[n + 1 :] for n in range(0, len(whole), 3)]
    for bad in spoilt:
        path.write_bytes(bad)
        found = store.get("ab12")
        assert found is None or found.tobytes() == picture.tobytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert store.get("ab12") is None
    gradient((8, 8)).save(path)
    assert store.get("ab12") is None


def test_a_picture_under_another_key_is_not_taken(tmp_path):
    store = CellStore(tmp_path)
    store.file("cd34").parent.mkdir()
    store.put("ab12", gradient()).rename(store.file("cd34"))
    assert store.get("cd34") is None


def test_what_a_killed_process_left_goes_when_the_cell_is_drawn(tmp_path):
    store = CellStore(tmp_path)
    left = store.file("ab12").with_name(".ab12.png.99.part")
    left.parent.mkdir()
    left.write_bytes(b"half")
    store.put("ab12", gradient())
    assert not left.exists()


FONT = ImageFont.load_default(14)


@pytest.mark.parametrize(
    "text",
    [
        "short",
        "a house by the sea in the style of an old master " * 3,
        "my_very-long.file-name_of_a_lora" * 4,
        "é" * 99,
    ],
)
@pytest.mark.parametrize("width", [60, 150, 400])
def test_labels_are_wrapped_and_nothing_is_wider_than_its_room(text, width):
    lines = sheet.wrap(text, width, FONT)
    assert all(FONT.getlength(line) <= width for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    cut = sheet.elide(text, width, 3, FONT)
    assert len(cut) <= 3 and all(FONT.getlength(line) <= width for line in cut)
    assert (cut == lines) == (len(lines) <= 3)
    if cut != lines:
        assert text.startswith(cut[0][:3]) and "…" in "".join(cut) and text.rstrip().endswith(cut[-1][-1])


def test_labels_that_differ_in_the_middle_show_where():
    assert sheet.distinct(["a red house by the sea", "a dark green house by the sea"]) == ["… red …", "… dark green …"]
    assert sheet.distinct(["x", "y"]) == ["x", "y"]
    assert sheet.distinct(["a house", "a house at sea"]) == ["…", "… at sea"]
    long = ["the very same beginning of a prompt " * 4 + word + " and the very same end of it" * 4 for word in "pq"]
    texts = sheet._block(long, 120, 2, FONT).texts
    assert ["p" in texts[0][0].split(), "q" in texts[1][0].split()] == [True, True]


@pytest.mark.parametrize(
    ("size", "columns", "cell"),
    [
        ((64, 64), 3, (192, 192)),
        ((1024, 1024), 2, (512, 512)),
        ((1024, 1024), 12, (341, 341)),
        ((1024, 1024), 60, (192, 192)),
        ((512, 1024), 4, (256, 512)),
        ((100, 50), 1, (200, 100)),
    ],
)
def test_pictures_stay_visible_in_any_number_of_columns(size, columns, cell):
    assert sheet.cell_size(size, columns) == cell


def test_every_picture_stands_in_its_place():
    reds = [
        [[Image.new("RGB", (64, 64), (40 * x, 80 * y, 120 * z)) for x in range(3)] for y in range(2)] for z in (0, 1)
    ]
    labels = sheet.Labels(["0", "1", "2"], ["a", "b"], ["seed 1", "seed 2"])
    pages = sheet.sheets(reds, labels)
    assert len({page.size for page in pages}) == 1
    wide, high = pages[0].size
    left, top = wide - 3 * 198, high - 2 * 198
    for z, page in enumerate(pages):
        for y in range(2):
            for x in range(3):
                for at in ((0, 0), (191, 191)):
                    place = left + x * 198 + at[0], top + y * 198 + at[1]
                    assert page.getpixel(place) == (40 * x, 80 * y, 120 * z)


def test_a_missing_picture_leaves_its_place_empty():
    page = sheet.sheets([[[None, Image.new("RGB", (32, 32), (1, 2, 3))]]], sheet.Labels(["a", "b"], [""], [""]))[0]
    wide, high = page.size
    assert page.getpixel((wide - 6 - 96, high - 6 - 96)) == (1, 2, 3)
    assert page.getpixel((wide - 6 - 96 - 198, high - 6 - 96)) == sheet.PAPER
