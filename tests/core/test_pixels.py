"""Colours of decoded frames: worked by hand, beside FFmpeg, and passed there and back."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from flux_atelier.core.frames.pixels import from_yuv, rgb_of
from flux_atelier.core.frames.video import to_video_frame

av = pytest.importorskip("av")


@pytest.mark.parametrize(
    ("yuv", "space", "full", "rgb"),
    [
        ((16, 128, 128), 1, False, (0, 0, 0)),
        ((235, 128, 128), 1, False, (1, 1, 1)),
        ((128, 128, 128), 5, True, (128 / 255,) * 3),
        ((63, 102, 240), 1, False, (1.0, 0.0, 0.0)),  # red of BT.709, to the nearest whole number
        ((81, 90, 240), 5, False, (1.0, 0.0, 0.0)),  # red of BT.601
        ((41, 240, 110), 2, False, (0.0, 0.0, 1.0)),  # one that tells no space is BT.601
    ],
)
def test_by_hand(yuv, space, full, rgb):
    found = from_yuv(torch.tensor(yuv).float().view(3, 1, 1), space, full).flatten()
    assert torch.allclose(found, torch.tensor(rgb).float(), atol=0.008)


@pytest.mark.parametrize(
    "kind",
    ["gray", "gray10le", "rgb24", "rgba", "gbrp", "yuv420p", "yuva420p", "yuvj420p", "nv12", "yuv422p", "yuyv422", "yuv420p10le", "p010le"],
)  # fmt: skip
def test_every_pixel_format_is_read(kind):
    """A smooth ramp, beside FFmpeg's own conversion, which is up to 3 of 255 off."""
    down, across = np.mgrid[:48, :64]
    ramp = np.stack([across * 3 + 20, down * 3 + 40, 200 - across * 2], -1).astype(np.uint8)
    frame = av.VideoFrame.from_ndarray(ramp, format="rgb24").reformat(format=kind)
    found = rgb_of(frame)
    assert (found.shape, found.dtype) == ((48, 64, 3), np.float32)
    assert np.abs(found * 255 - frame.to_ndarray(format="rgb24").astype(float)).max() <= 5


def test_brightness_stays_pass_after_pass():
    """To the film's pixels and back, four times, without the codec's own losses; FFmpeg's way back takes 4 of 255."""
    down, across = np.mgrid[:64, :64] / 63
    picture = torch.from_numpy(np.stack([0.2 + 0.5 * across, 0.3 + 0.4 * down, 0.8 - 0.5 * across])).float()
    passed = picture
    for _ in range(4):
        passed = torch.from_numpy(rgb_of(to_video_frame(passed, 0, Fraction(24)))).permute(2, 0, 1)
    assert ((passed - picture).mean((1, 2)).abs() * 255).max() < 0.7
