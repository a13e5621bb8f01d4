"""Cuts and repeats: by hand, and on fifty edits between and within photographs that move, flicker and are noisy."""

import math
import random

import pytest
import torch

from flux_atelier.core.frames.cuts import (
    Change,
    change_between,
    colour_change,
    is_cut,
    is_repeat,
    pattern_change,
    thumbnail,
)
from flux_atelier.trainer.nano import photos

NAMES = (
    "astronaut", "chelsea", "coffee", "rocket", "motorcycle_left", "hubble_deep_field", "retina", "ihc", "camera",
    "moon", "coins", "brick", "grass", "gravel",
)  # fmt: skip


def photo(name):
    image = photos.photograph(name).resize((256, 160))
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(160, 256, 3).permute(2, 0, 1) / 255


def seen(picture, across, down, turn):
    """A frame of 128 x 72 from the picture's middle, moved by pixels and turned by radians."""
    c, s = math.cos(turn) * 0.5, math.sin(turn) * 0.5
    matrix = torch.tensor([[[c, -s * 72 / 128, across / 128], [s * 128 / 72, c * 0.9, down / 80]]])
    grid = torch.nn.functional.affine_grid(matrix, (1, 3, 72, 128), align_corners=False)
    return torch.nn.functional.grid_sample(picture[None], grid, padding_mode="reflection", align_corners=False)[0]


def edits(count, seed):
    """(thumbnails, place of the cut): two shots of three frames each; every fifth cut stays within one photograph."""
    rng, noise = random.Random(seed), torch.Generator().manual_seed(seed)
    pictures = {name: photo(name) for name in NAMES}
    for number in range(count):
        names = rng.sample(NAMES, 2) if number % 5 else [rng.choice(NAMES[:6])] * 2
        frames = []
        for shot, name in enumerate(names):
            speed, turn = rng.choice((0, 2, 5, 10)), rng.uniform(-0.03, 0.03)
            jump = 60 if shot and names[0] == names[1] else 0
            for t in range(3):
                frame = seen(pictures[name].roll((jump, jump), (1, 2)), speed * t, speed * t / 3, turn * t)
                frame = frame * rng.uniform(0.93, 1.07) + 0.02 * torch.randn(frame.shape, generator=noise)
                frames.append(thumbnail(frame.clamp(0, 1)))
        yield frames


def test_cuts_are_found_and_nothing_else():
    right = found = there = 0
    for frames in edits(50, seed=1):
        for i in range(5):
            cut = change_between(frames[i], frames[i + 1]) is Change.CUT
            there += i == 2
            found += cut
            right += cut and i == 2
    assert there == 50
    assert right / there >= 0.98, (right, there)
    assert right / found >= 0.98, (right, found)


def test_measures_by_hand():
    black, white = torch.zeros(3, 36, 64), torch.ones(3, 36, 64)
    assert colour_change(black, white) == pytest.approx(1)
    assert colour_change(black, black) == pytest.approx(0, abs=1e-6)
    assert pattern_change(black, white) == 0  # neither has a pattern
    stripes = torch.zeros(3, 36, 64)
    stripes[..., ::8] = 1
    assert pattern_change(stripes, stripes.roll(3, 2)) < 0.05  # moved, not changed
    assert pattern_change(stripes, stripes.mT.reshape(3, 64, 36)[:, :36, :].repeat(1, 1, 2)[..., :64]) > 0.2


def test_a_flash_is_no_cut_and_a_step_in_time_is_none():
    picture = photo("coffee")
    assert not is_cut(seen(picture, 0, 0, 0), (seen(picture, 0, 0, 0) + 0.08).clamp(0, 1))
    assert not is_cut(seen(picture, 0, 0, 0), seen(picture, 8, 3, 0.02))
    assert is_cut(seen(picture, 0, 0, 0), seen(photo("grass"), 0, 0, 0))


@pytest.mark.parametrize("shift", [0.0, 0.0019])
def test_repeats_by_hand(shift):
    frame = torch.full((3, 72, 128), 0.5)
    assert is_repeat(frame, frame + shift)
    assert not is_repeat(frame, frame + 0.0021)


def test_a_small_thing_that_moves_is_no_repeat():
    frame = torch.full((3, 72, 128), 0.5)
    moved = frame.clone()
    moved[:, 10:14, 10:14] = 1
    assert (frame - moved).abs().mean() < 0.002
    assert not is_repeat(frame, moved)


@pytest.mark.parametrize("size", [(1, 1, 1), (1, 20, 100), (2, 9, 9), (3, 3, 5), (4, 70, 30)])
def test_any_frame_has_a_thumbnail(size):
    frame = torch.rand(size, generator=torch.Generator().manual_seed(0))
    assert thumbnail(frame).shape == (3, 36, 64)
    assert is_repeat(frame, frame)
