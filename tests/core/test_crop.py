"""Crops, buckets and the subject map: worked by hand, then beside a plain search, then laws."""

import json
import math
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from flux_atelier.core.dataset import bucket_report as R
from flux_atelier.core.dataset import crop as C
from flux_atelier.core.dataset import saliency as S
from flux_atelier.core.dataset.buckets import Bucket, make_buckets
from flux_atelier.core.dataset.buckets import choose_bucket as nearest
from flux_atelier.core.errors import AtelierError

SQUARE = Bucket(512, 512)


def box(x, y, w, h):
    return {"x": x, "y": y, "w": w, "h": h}


def cut(faces, crop) -> list:
    """Faces that are not wholly inside a crop."""
    return [
        f
        for f in faces
        if f["x"] < crop.x or f["y"] < crop.y or f["x"] + f["w"] > crop.x + crop.w or f["y"] + f["h"] > crop.y + crop.h
    ]


def scene(seed: int, size=(384, 256)) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """A subject somewhere on a textured ground, and its box."""
    rng = np.random.default_rng(seed)
    width, height = size
    cell = (2, 8, 32)[rng.integers(3)]
    small = rng.normal(0, 1, (height // cell + 1, width // cell + 1, 3)).astype(np.float32)
    planes = [np.asarray(Image.fromarray(small[..., i]).resize(size, Image.Resampling.BICUBIC)) for i in range(3)]
    ground = rng.integers(60, 190, 3) + np.stack(planes, -1) * rng.uniform(8, 22)
    w, h = (int(v) for v in rng.integers(55, 130, 2))
    x, y = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
    tone = rng.integers(30, 226, 3).astype(float)
    while np.abs(tone - ground.mean((0, 1))).max() < 50:
        tone = rng.integers(30, 226, 3).astype(float)
    inner = tone + np.kron(rng.normal(0, 25, (h // 6 + 1, w // 6 + 1, 3)), np.ones((6, 6, 1)))[:h, :w]
    down, across = np.mgrid[:h, :w]
    round_ = ((across - w / 2 + 0.5) / (w / 2)) ** 2 + ((down - h / 2 + 0.5) / (h / 2)) ** 2 <= 1
    ground[y : y + h, x : x + w][round_] = inner[round_]
    return Image.fromarray(np.clip(ground + rng.normal(0, 4, ground.shape), 0, 255).astype(np.uint8)), (x, y, w, h)


def kept(subject, crop) -> float:
    x, y, w, h = subject
    across = max(0, min(x + w, crop.x + crop.w) - max(x, crop.x))
    return across * max(0, min(y + h, crop.y + crop.h) - max(y, crop.y)) / (w * h)


# By hand


def test_without_anything_the_middle_is_kept():
    crop = C.smart_crop((768, 512), SQUARE)
    assert crop.box == (128, 0, 512, 512)
    assert crop.kept == pytest.approx(2 / 3)
    assert crop.subject_kept is None and (crop.faces_held, crop.faces_cut, crop.faces_lost) == (0, 0, 0)


def test_a_picture_of_the_aspect_is_kept_whole():
    assert C.smart_crop((640, 640), 1.0, [box(0, 0, 50, 50)]).box == (0, 0, 640, 640)
    assert C.smart_crop((1, 1), 1.0).box == (0, 0, 1, 1)


@pytest.mark.parametrize(
    "size, target, wanted",
    [
        ((768, 512), SQUARE, (512, 512)),
        ((512, 768), 1.0, (512, 512)),
        ((1000, 500), 0.5, (250, 500)),
        ((500, 1000), Bucket(1024, 512), (500, 250)),
        ((3, 100), 0.01, (1, 100)),
    ],
)
def test_the_largest_window(size, target, wanted):
    assert C.window_of(size, target) == wanted


def test_a_face_at_the_edge_is_held_with_its_room():
    face = box(10, 200, 60, 80)
    crop = C.smart_crop((768, 512), SQUARE, [face])
    assert crop.x <= 1 and not cut([face], crop) and crop.faces_held == 1
    # Right of the middle: 0.15 * 60 = 9 pixels of room beside it.
    face = box(600, 200, 60, 80)
    crop = C.smart_crop((768, 512), SQUARE, [face])
    assert crop.x + crop.w >= 669


def test_a_face_lies_in_the_upper_third_of_a_tall_picture():
    face = box(200, 500, 100, 100)
    crop = C.smart_crop((512, 1200), SQUARE, [face])
    # Its middle is at 550; a third of 512 is 171, so the window begins at about 379.
    assert abs((550 - crop.y) / crop.h - 1 / 3) < 0.05


def test_two_faces_too_far_apart_the_larger_one_is_held_and_none_is_cut():
    faces = [box(0, 200, 60, 60), box(650, 200, 110, 110)]
    crop = C.smart_crop((768, 512), SQUARE, faces)
    assert (crop.faces_held, crop.faces_cut, crop.faces_lost) == (1, 0, 1)
    assert not cut([faces[1]], crop) and crop.h == 512


def test_a_smaller_window_saves_a_face_that_the_largest_would_cut():
    # Largest 512 wide: with the right face (from 700 - 512 = 188 on) it always cuts the left one, which ends at 320.
    faces = [box(150, 200, 170, 170), box(500, 150, 268, 268)]
    crop = C.smart_crop((768, 512), SQUARE, faces)
    assert crop.faces_cut == 0 and crop.faces_held == 1 and 0.6 * 512 <= crop.h < 512
    assert C.smart_crop((768, 512), SQUARE, faces, options=C.CropOptions(smallest=1)).faces_cut == 1


def test_a_face_larger_than_any_window_is_shown_as_far_as_can_be():
    choice = C.choose_bucket((900, 300), [box(250, 20, 400, 260)], None, [Bucket(512, 512)])
    assert choice.crop.faces_cut == 1 and choice.crop.w == 300
    assert 250 <= choice.crop.x <= 350
    assert choice.told == "No bucket holds the face: it is cut."


def test_the_bucket_that_loses_least_where_no_face_asks_for_more():
    allowed = [Bucket(512, 512), Bucket(640, 384), Bucket(384, 640)]
    assert C.choose_bucket((768, 512), [], None, allowed).bucket == Bucket(640, 384)
    assert C.choose_bucket((700, 600), [], None, allowed).bucket == Bucket(512, 512)


def test_another_bucket_is_chosen_for_a_wide_row_of_faces():
    faces = [box(5, 100, 80, 80), box(610, 100, 80, 80)]
    allowed = [Bucket(512, 512), Bucket(640, 384)]
    # Square loses 1/7 of 700 x 600, the wide one 0.3; only the wide one holds both faces.
    assert C.choose_bucket((700, 600), [], None, allowed).bucket == Bucket(512, 512)
    choice = C.choose_bucket((700, 600), faces, None, allowed)
    assert choice.bucket == Bucket(640, 384) and choice.crop.faces_held == 2 and not choice.told


def test_a_row_whose_faces_fit_in_no_bucket_is_told():
    faces = [box(0, 100, 80, 80), box(688, 100, 80, 80)]
    choice = C.choose_bucket((768, 512), faces, None, [SQUARE])
    assert choice.told == "No bucket holds all 2 faces: 1 are kept, 0 cut, 1 left out."


def test_a_map_is_kept_where_it_is_dense():
    salient = np.zeros((8, 12))
    salient[2:6, 8:11] = 1
    crop = C.smart_crop((768, 512), SQUARE, (), salient)
    # Columns 8 to 11 of 12 are the pixels 512 to 704: the window has to begin at 192 at least.
    assert crop.x >= 192 and crop.subject_kept == pytest.approx(1)


@pytest.mark.parametrize(
    "call",
    [
        lambda: C.smart_crop((0, 10), 1.0),
        lambda: C.smart_crop((10, 10), 0.0),
        lambda: C.smart_crop((10, 10), math.nan),
        lambda: C.choose_bucket((10, 10), [], None, []),
    ],
)
def test_what_cannot_be_cropped_is_said(call):
    with pytest.raises(AtelierError):
        call()


# Beside a plain search


def test_the_map_inside_a_window_is_the_plain_sum():
    rng = np.random.default_rng(0)
    salient = rng.random((40, 60))
    crop = C.smart_crop((600, 400), 1.0, (), salient)
    fine = np.kron(salient, np.ones((10, 10)))
    plain = fine[crop.y : crop.y + crop.h, crop.x : crop.x + crop.w].sum() / fine.sum()
    assert crop.subject_kept == pytest.approx(plain, abs=1e-9)


def test_the_best_rectangle_is_that_of_trying_all():
    rng = np.random.default_rng(1)
    for _ in range(20):
        values = rng.normal(-0.3, 1, (6, 7))
        sums = {
            (t, b, left, r): values[t:b, left:r].sum()
            for t in range(6) for b in range(t + 1, 7) for left in range(7) for r in range(left + 1, 8)
        }  # fmt: skip
        assert sums[S._best_rectangle(values)] == pytest.approx(max(sums.values()))


# Laws


def test_no_face_is_cut_where_some_bucket_can_hold_them():
    rng = np.random.default_rng(2)
    buckets, could = make_buckets(512), 0
    for _ in range(300):
        width, height = (int(v) for v in rng.integers(256, 2400, 2))
        side = rng.uniform(0.04, 0.5) * min(width, height)
        places = rng.random((rng.integers(1, 5), 2)) * [width - side, height - side]
        if rng.random() < 0.5:
            places = np.floor(places)
        faces = [box(float(x), float(y), side, side) for x, y in places]
        union = np.ceil(places.max(0) + side) - np.floor(places.min(0))
        scales = [min(width / b.width, height / b.height) for b in buckets]
        can = any((union <= [b.width * s, b.height * s]).all() for b, s in zip(buckets, scales, strict=True))
        choice = C.choose_bucket((width, height), faces, None, buckets)
        crop = choice.crop
        assert crop.x >= 0 and crop.y >= 0 and crop.x + crop.w <= width and crop.y + crop.h <= height
        assert crop.faces_held + crop.faces_cut + crop.faces_lost == len(faces)
        assert crop.faces_held == len(faces) - len(cut(faces, crop))
        if can:
            could += 1
            assert not cut(faces, crop), (width, height, faces, choice)
            assert not choice.told
    assert could > 150


def test_the_trainer_puts_a_crop_into_the_chosen_bucket():
    rng = np.random.default_rng(3)
    for resolution in (512, 1024):
        buckets = make_buckets(resolution)
        for _ in range(100):
            size = tuple(int(v) for v in rng.integers(600, 3000, 2))
            choice = C.choose_bucket(size, [], None, buckets)
            assert nearest(choice.crop.w, choice.crop.h, buckets) == choice.bucket, (size, choice)


def test_mirroring_a_picture_mirrors_its_crop():
    rng = np.random.default_rng(4)
    for _ in range(50):
        face = box(int(rng.integers(0, 600)), int(rng.integers(0, 400)), 90, 90)
        there = box(768 - face["x"] - 90, face["y"], 90, 90)
        one, other = (C.smart_crop((768, 512), SQUARE, [f]) for f in (face, there))
        assert abs(one.x - (768 - other.x - other.w)) <= 4


def test_the_same_question_has_the_same_answer_and_nothing_is_written_into_it():
    salient = S.subject_map(scene(0)[0])
    before = salient.copy()
    faces = [box(30.5, 40.25, 60, 60)]
    assert len({C.smart_crop((768, 512), SQUARE, faces, salient) for _ in range(3)}) == 1
    assert (salient == before).all() and faces == [box(30.5, 40.25, 60, 60)]


def test_subjects_are_kept_whole_in_nineteen_of_twenty_pictures():
    whole = {"map": 0, "box": 0, "centre": 0}
    for seed in range(200):
        image, subject = scene(seed)
        salient = S.subject_map(image)
        whole["map"] += kept(subject, C.smart_crop(image.size, SQUARE, (), salient)) >= 0.95
        found = S.subject_box(image, salient)
        whole["box"] += kept(subject, C.smart_crop(image.size, SQUARE, (), found)) >= 0.95
        whole["centre"] += kept(subject, C.Crop(64, 0, 256, 256, 0, None, 0, 0, 0)) >= 0.95
    assert whole["map"] >= 190 and whole["box"] >= 190
    assert 100 <= whole["centre"] <= 140  # the set is not an easy one


# The subject map


@pytest.mark.parametrize("size", [(768, 512), (1, 1), (5, 400), (2000, 30)])
def test_a_map_sums_to_one_whatever_the_size(size):
    rng = np.random.default_rng(5)
    image = Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))
    found = S.subject_map(image)
    assert found.sum() == pytest.approx(1, abs=1e-4) and found.min() >= 0 and max(found.shape) <= 96
    held = S.subject_box(image, found)
    assert held["x"] >= 0 and held["x"] + held["w"] <= size[0] + 1e-6 and held["w"] > 0 and held["h"] > 0


def test_an_even_picture_has_no_subject_but_everything():
    image = Image.new("RGB", (300, 200), (90, 90, 90))
    held = S.subject_box(image)
    assert (held["x"], held["y"], held["w"], held["h"]) == (0, 0, 300, 200)
    assert C.smart_crop(image.size, 1.0, (), S.subject_map(image)).box == (50, 0, 200, 200)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_a_disc_is_found_in_any_mode(mode):
    image = Image.new("RGB", (384, 256), (60, 60, 60))
    image.paste((220, 220, 220), (260, 60, 330, 140))
    held = S.subject_box(image.convert(mode))
    assert held["x"] <= 264 and held["x"] + held["w"] >= 326 and held["w"] < 160
    assert json.dumps(held)


# The report


@dataclass(frozen=True)
class Placed:
    id: str
    width: int
    height: int
    crop: tuple | None = None
    repeats: int = 1


def test_a_report_by_hand():
    buckets = [Bucket(512, 512), Bucket(640, 384)]
    rows = [
        Placed("a", 1024, 1024),
        Placed("b", 512, 1024, repeats=3),
        Placed("c", 320, 192),
        Placed("d", 1000, 800, (0, 0, 500, 500)),
    ]
    report = R.report_buckets(rows, 512, 2, buckets)
    square, wide = report.uses
    assert (square.bucket, square.pictures, square.seen, square.batches) == (Bucket(512, 512), 3, 5, 3)
    assert (wide.bucket, wide.pictures, wide.seen, wide.batches) == (Bucket(640, 384), 1, 1, 1)
    # a nothing; b half; c nothing; d keeps 500 * 500 of 800,000.
    assert [loss.lost for loss in report.losses] == pytest.approx([0, 0.5, 0, 0.6875])
    assert [loss.enlarged for loss in report.losses] == pytest.approx([0.5, 1, 2, 1.024])
    assert report.lost == pytest.approx(1.1875 / 4)
    assert report.short == (wide,) and [loss.id for loss in report.enlarged] == ["c", "d"]
    assert report.text().splitlines() == [
        "4 pictures in 2 buckets of about 512 x 512, batch size 2",
        "bucket       pictures   seen  batches    lost",
        "512x512             3      5        3   39.6%",
        "640x384             1      1        1    0.0%  fewer than a batch",
        "Pixels lost: 29.7% a picture, at most 68.8% (d).",
        "Enlarged: 2 pictures, at most 2.00 x (c).",
        "Fewer pictures than the batch size: 640x384 (1). They are trained on in smaller batches.",
    ]


def test_no_picture_is_dropped_from_a_report():
    rng = np.random.default_rng(6)
    rows = [
        Placed(str(i), *(int(v) for v in rng.integers(64, 3000, 2)), repeats=int(rng.integers(1, 4)))
        for i in range(300)
    ]
    report = R.report_buckets(rows, 512, 4)
    assert [loss.id for loss in report.losses] == [row.id for row in rows]
    assert sum(use.pictures for use in report.uses) == 300
    assert sum(use.seen for use in report.uses) == sum(row.repeats for row in rows)
    assert all(0 <= loss.lost <= 1 for loss in report.losses)
    assert all(use in report.short or use.pictures >= 4 for use in report.uses)


def test_empty_and_impossible_reports():
    assert R.report_buckets([], 512).text() == "No pictures for buckets of 512."
    with pytest.raises(AtelierError, match="x7 is 0 x 0 pixels"):
        R.report_buckets([Placed("x7", 0, 0)], 512)
    with pytest.raises(AtelierError, match="batch size is 0"):
        R.report_buckets([], 512, 0)
