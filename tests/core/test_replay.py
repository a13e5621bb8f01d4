"""Recorded operations: by hand, beside numpy and PIL, then laws (boxes and pixels go together)."""

import math

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from flux_atelier.core.dataset.replay import (
    check_ops,
    geometric,
    inner_rectangle,
    replay,
    replay_beside,
    replay_boxes,
    replayed_size,
    scaled_crop,
)
from flux_atelier.core.errors import AtelierError

FLIP, FLOP = {"name": "flip"}, {"name": "flip", "axis": "vertical"}


def noise(width=40, height=30, seed=0, mode="RGB") -> Image.Image:
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def turned(turns: int) -> dict:
    return {"name": "rotate", "turns": turns}


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        (FLIP, [[3, 2, 1], [6, 5, 4]]),
        (FLOP, [[4, 5, 6], [1, 2, 3]]),
        (turned(1), [[3, 6], [2, 5], [1, 4]]),
        (turned(2), [[6, 5, 4], [3, 2, 1]]),
        (turned(3), [[4, 1], [5, 2], [6, 3]]),
        ({"name": "crop", "x": 1, "y": 0, "w": 2, "h": 1}, [[2, 3]]),
        ({"name": "crop", "x": -5, "y": 1, "w": 7, "h": 90}, [[4, 5]]),
        ({"name": "scale", "factor": 1}, [[1, 2, 3], [4, 5, 6]]),
        ({"name": "scale", "longest": 9}, [[1, 2, 3], [4, 5, 6]]),
    ],
)
def test_six_pixels_by_hand(op, expected):
    picture = Image.fromarray(np.array([[1, 2, 3], [4, 5, 6]], np.uint8))
    assert np.asarray(replay(picture, None, [op])).tolist() == expected
    assert replayed_size(3, 2, None, [op]) == (len(expected[0]), len(expected))


def test_the_crop_comes_first_and_operations_keep_their_order():
    picture = Image.fromarray(np.array([[1, 2, 3, 4]], np.uint8))
    cut = {"name": "crop", "x": 0, "y": 0, "w": 2, "h": 1}
    assert np.asarray(replay(picture, (0, 0, 3, 1), [FLIP, cut])).tolist() == [[3, 2]]
    assert np.asarray(replay(picture, (0, 0, 3, 1), [cut, FLIP])).tolist() == [[2, 1]]


def test_nothing_to_do_gives_the_picture_itself():
    picture = noise()
    assert replay(picture) is picture and replay(picture, None, []) is picture
    assert replayed_size(4, 5) == (4, 5)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_beside_numpy(mode):
    picture = noise(mode=mode)
    pixels = np.asarray(picture)
    for op, expected in [
        (FLIP, np.fliplr(pixels)),
        (FLOP, np.flipud(pixels)),
        *[(turned(k), np.rot90(pixels, k)) for k in (1, 2, 3)],
    ]:
        made = replay(picture, None, [op])
        assert made.mode == mode and np.array_equal(np.asarray(made), expected)


def test_four_quarters_and_two_flips_are_nothing():
    picture = noise()
    assert np.array_equal(np.asarray(replay(picture, None, [turned(1)] * 4)), np.asarray(picture))
    assert np.array_equal(np.asarray(replay(picture, None, [FLIP, FLIP])), np.asarray(picture))


def test_scaling():
    assert replayed_size(400, 300, None, [{"name": "scale", "factor": 0.5}]) == (200, 150)
    assert replayed_size(400, 300, None, [{"name": "scale", "longest": 100}]) == (100, 75)
    assert replayed_size(40, 30, None, [{"name": "scale", "longest": 100}]) == (40, 30)
    assert replayed_size(40, 30, None, [{"name": "scale", "longest": 100, "enlarge": True}]) == (100, 75)
    assert replayed_size(1000, 2, None, [{"name": "scale", "factor": 0.01}]) == (10, 1)


@pytest.mark.parametrize(
    ("width", "height", "degrees", "expected"),
    [
        (100, 100, 45, (70, 70)),  # a square of 100 / sqrt(2)
        (200, 100, 45, (70, 70)),  # thin: half the shorter side over sin and cos
        (100, 200, -45, (70, 70)),
        (100, 100, 30, (73, 73)),  # 100 / (sin 30 + cos 30) = 73.2
        (300, 200, 0, (300, 200)),
    ],
)
def test_the_largest_rectangle_by_hand(width, height, degrees, expected):
    assert inner_rectangle(width, height, degrees) == expected


def test_the_largest_rectangle_lies_inside_and_none_is_larger():
    """Beside a search over all heights: the widest centred rectangle whose corners lie in the turned picture."""
    for width, height, degrees in [(120, 80, 7), (80, 120, -7), (90, 90, 20), (300, 60, 30), (64, 256, 44.5)]:
        sin, cos = abs(math.sin(math.radians(degrees))), abs(math.cos(math.radians(degrees)))
        h = np.linspace(0.01, max(width, height), 200_001)
        w = np.minimum((width - h * sin) / cos, (height - h * cos) / sin)
        best = float((w * h).max())
        own = inner_rectangle(width, height, degrees)
        assert own.width * cos + own.height * sin <= width + 1e-4
        assert own.width * sin + own.height * cos <= height + 1e-4
        assert best - (own.width + own.height + 1) <= own.width * own.height <= best + 1e-3


@pytest.mark.parametrize("degrees", [-45, -30, -3.5, 0.2, 5, 17, 45])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_turning_leaves_no_black_corner(degrees, mode):
    for size in [(64, 64), (97, 31), (30, 80)]:
        white = Image.new(mode, size, "white")
        op = [{"name": "rotate", "degrees": degrees}]
        made = replay(white, None, op)
        assert np.asarray(made).min() == 255
        assert made.size == replayed_size(*size, None, op)


def test_turning_by_degrees_beside_pil():
    rng = np.random.default_rng(3)
    soft = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((160, 120), Image.Resampling.BICUBIC)
    made = replay(soft, None, [{"name": "rotate", "degrees": 12}])
    assert made.size == (144, 92)
    whole = soft.rotate(12, Image.Resampling.BICUBIC)  # about the same centre, nothing cut, black outside
    reference = whole.crop((8, 14, 152, 106))
    apart = np.abs(np.asarray(made, float) - np.asarray(reference, float))
    assert apart[2:-2, 2:-2].max() <= 1


def test_colour_beside_pil():
    picture = noise()
    made = replay(picture, None, [{"name": "color", "brightness": 1.2, "contrast": 0.8, "saturation": 0.5}])
    expected = ImageEnhance.Color(ImageEnhance.Contrast(ImageEnhance.Brightness(picture).enhance(1.2)).enhance(0.8))
    assert np.array_equal(np.asarray(made), np.asarray(expected.enhance(0.5)))
    grey = replay(Image.new("RGB", (2, 2), (64, 64, 64)), None, [{"name": "color", "gamma": 2.0, "hue": 90}])
    assert np.asarray(grey).tolist() == [[[16] * 3] * 2] * 2  # 255 * (64 / 255) ** 2 = 16.06; grey has no hue
    assert np.array_equal(np.asarray(replay(picture, None, [{"name": "color"}])), np.asarray(picture))


def test_a_turn_of_the_hue_keeps_luminance_and_comes_back():
    soft = Image.fromarray(np.random.default_rng(1).integers(110, 145, (20, 20, 3), dtype=np.uint8))
    weights = np.array([0.213, 0.715, 0.072])
    there = replay(soft, None, [{"name": "color", "hue": 120}])
    assert np.abs((np.asarray(there, float) - np.asarray(soft, float)) @ weights).max() < 1.5
    assert np.abs(np.asarray(there, float) - np.asarray(soft, float)).max() > 10
    back = replay(there, None, [{"name": "color", "hue": -120}])
    assert np.abs(np.asarray(back, float) - np.asarray(soft, float)).max() <= 3


@pytest.mark.parametrize(
    ("op", "word"),
    [
        ({"name": "flp"}, "flip"),
        ({}, "None"),
        ({"name": "flip", "axis": "up"}, "axis"),
        ({"name": "flip", "axes": "vertical"}, "axis"),
        ({"name": "rotate"}, "one of the two"),
        ({"name": "rotate", "turns": 4}, "turns"),
        ({"name": "rotate", "turns": 1, "degrees": 3}, "one of the two"),
        ({"name": "rotate", "degrees": 46}, "degrees"),
        ({"name": "rotate", "degrees": float("nan")}, "degrees"),
        ({"name": "crop", "x": 0, "y": 0, "w": 0, "h": 5}, "w"),
        ({"name": "crop", "x": 40, "y": 0, "w": 5, "h": 5}, "outside"),
        ({"name": "scale", "factor": -1}, "factor"),
        ({"name": "scale", "factor": float("inf")}, "factor"),
        ({"name": "color", "gamma": 0}, "gamma"),
        ({"name": "color", "hue": "blue"}, "hue"),
    ],
)
def test_bad_operations_are_told(op, word):
    with pytest.raises(AtelierError, match=word):
        replay(noise(), None, [op])
    with pytest.raises(AtelierError, match=word):
        replayed_size(40, 30, None, [op])
    if word != "outside":
        with pytest.raises(AtelierError, match=word):
            check_ops([FLIP, op])


def test_bad_crops_modes_and_sizes_are_told():
    for crop, word in [
        ((0, 0, 4), "width and height"),
        ((50, 0, 5, 5), "outside"),
        ((0, 0, -1, 5), "w"),
        ((0.5, 0, 2, 2), "x"),
    ]:
        with pytest.raises(AtelierError, match=word):
            replay(noise(), crop)
    with pytest.raises(AtelierError, match="mode P"):
        replay(noise().convert("P"), None, [FLIP])
    with pytest.raises(AtelierError, match="32768"):
        replayed_size(2000, 10, None, [{"name": "scale", "factor": 20}])


def test_masks_go_through_what_moves_pixels():
    ops = [FLIP, {"name": "color", "brightness": 0.5}, turned(1)]
    assert geometric(ops) == (FLIP, turned(1)) and geometric(None) == ()
    mask = noise(mode="L")
    assert np.array_equal(np.asarray(replay(mask, None, geometric(ops))), np.rot90(np.fliplr(np.asarray(mask))))
    with pytest.raises(AtelierError, match="flip"):
        geometric([{"name": "flpi"}])


def test_boxes_by_hand():
    face = {"label": "face", "x": 10, "y": 5, "w": 8, "h": 6, "score": 0.9}

    def moved(crop, ops):
        return [(b["x"], b["y"], b["w"], b["h"]) for b in replay_boxes([face], 40, 30, crop, ops)]

    assert moved(None, [FLIP]) == [(22, 5, 8, 6)]
    assert moved(None, [FLOP]) == [(10, 19, 8, 6)]
    assert moved(None, [turned(1)]) == [(5, 22, 6, 8)]
    assert moved(None, [turned(3)]) == [(19, 10, 6, 8)]
    assert moved((4, 2, 20, 20), None) == [(6, 3, 8, 6)]
    assert moved((12, 2, 20, 20), None) == [(0, 3, 6, 6)]  # cut at its left
    assert moved((20, 2, 20, 20), None) == []
    assert moved(None, [{"name": "scale", "factor": 0.5}]) == [(5, 2.5, 4, 3)]
    assert moved(None, [{"name": "color", "gamma": 2}]) == [(10, 5, 8, 6)]
    assert replay_boxes([face], 40, 30)[0] == face
    assert replay_boxes(None, 40, 30, None, [FLIP]) is None


def random_ops(rng) -> list[dict]:
    choices = [
        lambda: {"name": "flip", "axis": str(rng.choice(["horizontal", "vertical"]))},
        lambda: turned(int(rng.integers(1, 4))),
        lambda: {"name": "rotate", "degrees": float(rng.uniform(-20, 20))},
        lambda: {"name": "crop", "x": int(rng.integers(-5, 20)), "y": int(rng.integers(-5, 20)), "w": 150, "h": 150},
        lambda: {"name": "scale", "factor": float(rng.uniform(0.6, 1.5))},
        lambda: {"name": "scale", "longest": 180},
    ]
    return [choices[int(rng.integers(len(choices)))]() for _ in range(int(rng.integers(1, 5)))]


@pytest.mark.parametrize("seed", range(40))
def test_boxes_and_pixels_go_together(seed):
    """A painted box is found where the box says: exactly without a turn by degrees, else within it and touching."""
    rng = np.random.default_rng(seed)
    width, height = int(rng.integers(150, 260)), int(rng.integers(150, 260))
    x, y = int(rng.integers(0, width - 60)), int(rng.integers(0, height - 60))
    w, h = int(rng.integers(30, 60)), int(rng.integers(30, 60))
    pixels = np.zeros((height, width), np.uint8)
    pixels[y : y + h, x : x + w] = 255
    crop = (int(rng.integers(0, 20)), int(rng.integers(0, 20)), 140, 140) if seed % 2 else None
    ops = random_ops(rng)
    made = replay(Image.fromarray(pixels), crop, ops)
    assert made.size == replayed_size(width, height, crop, ops)
    boxes = replay_boxes([{"x": x, "y": y, "w": w, "h": h, "label": "face"}], width, height, crop, ops)
    painted = np.argwhere(np.asarray(made) > 127)
    if not boxes:
        assert len(painted) == 0
        return
    (box,) = boxes
    if min(box["w"], box["h"]) < 3:
        return  # a sliver: nothing to measure
    upper, left = painted.min(0)
    lower, right = painted.max(0) + 1
    told = np.array([box["x"], box["y"], box["x"] + box["w"], box["y"] + box["h"]])
    found = np.array([left, upper, right, lower])
    outside = np.maximum(told * [1, 1, -1, -1] - found * [1, 1, -1, -1], 0)
    assert outside.max() <= 2, (told, found, ops)
    if sum("degrees" in op for op in ops) == 0:
        assert np.abs(told - found).max() <= 1.5, (told, found, ops)


def test_a_crop_in_another_size():
    assert scaled_crop((10, 20, 30, 40), (100, 100), (50, 50)) == (5, 10, 15, 20)
    assert scaled_crop((10, 20, 30, 40), (100, 100), (200, 50)) == (20, 10, 60, 20)
    assert scaled_crop((-10, 0, 30, 200), (100, 100), (50, 50)) == (0, 0, 10, 50)
    assert scaled_crop((99, 99, 1, 1), (100, 100), (10, 10)) == (9, 9, 1, 1)  # never empty, never outside
    with pytest.raises(AtelierError, match="outside"):
        scaled_crop((100, 0, 5, 5), (100, 100), (50, 50))


def test_companions_follow_in_their_own_size():
    whole = np.zeros((200, 300), np.uint8)
    whole[40:120, 60:180] = 255
    mask = Image.fromarray(whole).resize((150, 100), Image.Resampling.BOX)
    ops = [FLIP, turned(1), {"name": "crop", "x": 10, "y": 20, "w": 160, "h": 240}, {"name": "scale", "longest": 120}]
    crop = (20, 10, 270, 180)
    picture, beside = replay(Image.fromarray(whole), crop, ops), replay_beside(mask, 300, 200, crop, ops)
    assert picture.size == (80, 120) and beside.size == (40, 60)
    again = np.asarray(beside.resize(picture.size, Image.Resampling.BILINEAR), float)
    assert np.abs(again - np.asarray(picture, float)).mean() < 5
    same = replay_beside(Image.fromarray(whole), 300, 200, crop, ops)
    assert np.array_equal(np.asarray(same), np.asarray(picture))


def test_the_picture_given_stays_as_it_is():
    picture, ops = noise(), [FLIP, {"name": "color", "gamma": 2.0}]
    before, told = picture.tobytes(), [dict(op) for op in ops]
    replay(picture, (1, 1, 20, 20), ops)
    assert picture.tobytes() == before and ops == told
