"""Copies as recorded operations: by hand, then laws (reproducible, faces whole, captions true)."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from flux_atelier.core.dataset.augment import (
    AugmentOptions,
    may_mirror,
    mirror_warnings,
    variants,
)
from flux_atelier.core.dataset.mirroring import mirror_text, mirrored_words, side_words, writing_words
from flux_atelier.core.dataset.replay import check_ops, replay, replayed_size
from flux_atelier.core.dataset.stored import StoredRow, WrittenCaption

FLIP = {"name": "flip", "axis": "horizontal"}
ALL = AugmentOptions(copies=8, degrees=20, crop=0.4, color=1, hue=30)


def row(number: int, caption: str = "", **values) -> StoredRow:
    captions = (WrittenCaption(caption),) if caption else ()
    given = {"width": 300, "height": 200, "id": f"r{number}", "captions": captions} | values
    return StoredRow(f"{number}.png", f"digest{number}", **given)


def test_the_default_is_one_mirrored_copy():
    assert variants([row(1)], AugmentOptions()) == {"r1": [{"ops": [FLIP], "mirrored": True}]}


def test_a_copy_that_is_the_picture_or_another_copy_is_not_made():
    assert variants([row(1)], AugmentOptions(copies=16)) == {"r1": [{"ops": [FLIP], "mirrored": True}]}
    assert variants([row(1)], AugmentOptions(copies=16, flip=False)) == {}
    assert variants([row(1)], AugmentOptions(copies=0)) == {}


def test_every_second_copy_is_mirrored():
    (copies,) = variants([row(1)], ALL).values()
    assert [FLIP in copy["ops"] for copy in copies] == [True, False] * 4
    check_ops(op for copy in copies for op in copy["ops"])


def test_only_readable_training_pictures_that_are_no_copies():
    rows = [row(1, split="validation"), row(2, parent="r9", id="r9+1"), row(3, fault="broken"), row(4, width=0), row(5)]
    assert list(variants(rows, AugmentOptions())) == ["r5"]


def test_a_rows_own_operations_come_first():
    own = ({"name": "rotate", "turns": 1},)
    (copies,) = variants([row(1, ops=own, crop=(0, 0, 100, 50))], ALL).values()
    assert all(copy["ops"][0] == own[0] and len(copy["ops"]) > 1 for copy in copies)


def test_copies_depend_on_seed_digest_and_number_alone():
    rows = [row(i) for i in range(20)]
    whole = variants(rows, ALL)
    assert variants(rows[::-1][:7], ALL) == {own.id: whole[own.id] for own in rows[:-8:-1]}
    moved = variants([replace(rows[3], id="other", path="elsewhere.png")], ALL)
    assert moved["other"] == whole["r3"]
    fewer = variants(rows, ALL.model_copy(update={"copies": 3}))
    assert all(fewer[own] == whole[own][:3] for own in fewer)
    assert variants(rows, ALL.model_copy(update={"seed": 1}))["r3"] != whole["r3"]
    assert len({str(copies) for copies in whole.values()}) == 20


def test_one_option_does_not_change_what_another_draws():
    plain = AugmentOptions(copies=4, crop=0.3, flip=False)
    coloured = plain.model_copy(update={"color": 0.5})
    for a, b in zip(variants([row(1)], plain)["r1"], variants([row(1)], coloured)["r1"], strict=True):
        assert a["ops"] == [op for op in b["ops"] if op["name"] != "color"]


def test_limits_hold_and_are_used():
    angles, shares, shades, hues = [], [], [], []
    for copies in variants([row(i) for i in range(200)], ALL).values():
        for copy in copies:
            width, height = 300, 200
            for op in copy["ops"]:
                if op["name"] == "rotate":
                    angles.append(op["degrees"])
                    width, height = replayed_size(300, 200, None, [op])
                elif op["name"] == "crop":
                    shares += [op["w"] / width, op["h"] / height]
                    assert 0 <= op["x"] <= width - op["w"] and 0 <= op["y"] <= height - op["h"]
                elif op["name"] == "color":
                    hues.append(op["hue"])
                    shades += [op[name] for name in ("brightness", "contrast", "saturation", "gamma")]
    for values, low, high in [(angles, -20, 20), (shares, 0.6, 1), (shades, 0.7, 1.3), (hues, -30, 30)]:
        slack, span = 0.01, high - low
        assert low - slack <= min(values) < low + span / 50 and high - span / 50 < max(values) <= high + slack
        assert abs(np.mean(values) - (low + high) / 2) < span / 20


@pytest.mark.parametrize("seed", range(30))
def test_faces_are_never_cut(seed):
    """A painted face is whole in every copy: its area is what turning and cutting elsewhere leave of it, all."""
    rng = np.random.default_rng(seed)
    faces, pixels = [], np.zeros((200, 300), np.uint8)
    for _ in range(int(rng.integers(1, 3))):
        x, y, w, h = (
            int(rng.integers(0, 250)),
            int(rng.integers(0, 150)),
            int(rng.integers(20, 50)),
            int(rng.integers(20, 50)),
        )
        faces.append({"label": "face", "x": x, "y": y, "w": w, "h": h, "score": 1.0})
        pixels[y : y + h, x : x + w] = 255
    picture = Image.fromarray(pixels)
    area = (pixels > 0).sum()
    options = AugmentOptions(copies=6, degrees=30, crop=0.5)
    made = variants([row(seed, boxes=tuple(faces))], options)
    uncovered = variants([row(seed, boxes=tuple(faces))], options.model_copy(update={"protect": ""}))
    areas = [(np.asarray(replay(picture, None, copy["ops"])) > 127).sum() for copy in made[f"r{seed}"]]
    assert min(areas) >= area * 0.97 - 5
    assert made != uncovered


def test_without_protection_faces_are_cut():
    face = {"label": "face", "x": 0, "y": 0, "w": 40, "h": 40}
    options = AugmentOptions(copies=8, crop=0.5, protect="hand")
    (copies,) = variants([row(1, boxes=(face,))], options).values()
    assert any(op["name"] == "crop" and op["x"] + op["y"] > 0 for copy in copies for op in copy["ops"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a cat on the left", "a cat on the right"),
        ("Left: a dog. RIGHT: a cat.", "Right: a dog. LEFT: a cat."),
        (
            "left and right, leftmost, right-handed, to the rightward",
            "right and left, rightmost, left-handed, to the leftward",
        ),
        ("the tree is left of the house", "the tree is right of the house"),
        ("the woman on the left in a red dress", "the woman on the right in a red dress"),
        ("all right, she has left the room", "all right, she has left the room"),
        ("a bright, upright man, copyright", "a bright, upright man, copyright"),
        ("a dog right behind him", "a dog right behind him"),
        ("a dog to the right behind him", "a dog to the left behind him"),
        ("a right angle, leftover food", "a right angle, leftover food"),
        ("", ""),
    ],
)
def test_left_and_right_change_places(text, expected):
    assert mirror_text(text) == expected
    assert mirror_text(expected) == text


def test_words_of_sides_and_of_writing():
    assert side_words("Left hand and left eye, to the RIGHT") == ("left", "right")
    assert side_words("a bright light") == ()
    assert writing_words('a sign that reads "OPEN" with a logo') == ("sign", "reads", '"open"', "logo")
    assert writing_words("a woman reading a designer's texture") == ()


def test_mirrored_copies_say_what_is_there():
    left = row(1, "a cat on the left", tags=("cat", "left hand"))
    options = AugmentOptions(copies=2, crop=0.2)
    mirrored, other = variants([left], options)["r1"]
    assert mirrored["mirrored"] is True and set(other) == {"ops"}
    told = mirrored_words(left.captions, left.tags)
    assert told == {"captions": (WrittenCaption("a cat on the right"),), "tags": ("cat", "right hand")}
    (warning,) = mirror_warnings([left, row(2, "a cat")], options)
    assert (warning.id, warning.kind, warning.words) == ("r1", "sides", ("left",)) and "swapped" in warning.done
    assert variants([left], options.model_copy(update={"sides": "leave"}))["r1"][0].keys() == {"ops"}


def test_what_cannot_be_mirrored_is_not():
    left, sign, both = row(1, "on the left"), row(2, "", tags=("watermark",)), row(3, "text on the right")
    skip = AugmentOptions(sides="skip")
    assert variants([left, sign, both], skip) == {}
    assert [w.done for w in mirror_warnings([left, sign, both], skip)] == ["not mirrored"] * 4
    assert list(variants([left, sign, both], AugmentOptions())) == ["r1"]
    assert list(variants([left, sign, both], AugmentOptions(keep_text=False))) == ["r1", "r2", "r3"]
    assert not may_mirror(left, AugmentOptions(flip=False))
    assert mirror_warnings([left, sign], AugmentOptions(flip=False)) == []
    assert mirror_warnings([replace(left, split="test")], skip) == []
