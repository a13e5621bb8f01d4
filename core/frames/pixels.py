"""A decoded frame's colours as numbers.

FFmpeg's own conversion to RGB cuts off what is behind the comma: each pass through it darkens a film by about 1 of 255.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

# Share of red and blue in luma, by the colour space that a frame tells; FFmpeg takes BT.601 for one that tells none.
LUMA = {1: (0.2126, 0.0722), 7: (0.212, 0.087), 9: (0.2627, 0.0593), 10: (0.2627, 0.0593)}
BT601 = 0.299, 0.114
FULL = 2  # a colour range that uses all values


def rgb_of(frame: Any) -> np.ndarray:
    """A frame of PyAV, of any pixel format, as [H, W, 3] float32 in 0..1."""
    kind = frame.format
    deep = max(part.bits for part in kind.components) > 8
    if kind.is_rgb or len(kind.components) < 3 or kind.has_palette:
        return frame.to_ndarray(format="rgb48le" if deep else "rgb24").astype(np.float32) / (65535 if deep else 255)
    range_ = FULL if kind.name.startswith("yuvj") else int(frame.color_range)
    planes = frame.reformat(
        format="yuv444p16le" if deep else "yuv444p", src_color_range=range_, dst_color_range=range_
    ).to_ndarray()
    values = torch.from_numpy(planes.transpose(2, 0, 1).astype(np.float32) / 256 if deep else planes.astype(np.float32))
    return from_yuv(values, int(frame.colorspace), range_ == FULL).permute(1, 2, 0).numpy()


def from_yuv(values: Tensor, space: int, full: bool) -> Tensor:
    """Luma and two colour differences, [3, H, W] in 0..255, as RGB in 0..1 (ITU-R BT.601, BT.709, BT.2020).

    space  number of the colour space as in ISO/IEC 23091-2
    full   0..255 is used, and not 16..235 and 16..240
    """
    red, blue = LUMA.get(space, BT601)
    green = 1 - red - blue
    low, luma, chroma = (0.0, 255.0, 255.0) if full else (16.0, 219.0, 224.0)
    y, u, v = (values[0] - low) / luma, (values[1] - 128) / chroma, (values[2] - 128) / chroma
    r, b = y + 2 * (1 - red) * v, y + 2 * (1 - blue) * u
    return torch.stack([r, (y - red * r - blue * b) / green, b]).clamp(0, 1)
