"""Frames with an alpha channel: while they are warped and mixed, colours count as much as they cover."""

import torch
from torch import Tensor


def has_alpha(frame: Tensor) -> bool:
    """Whether the last channel of [C, H, W] is alpha: of grey and alpha, or of RGBA."""
    return len(frame) in (2, 4)


def covering(frame: Tensor) -> Tensor:
    """Colours multiplied by alpha, where a frame [C, H, W] has one: or what is clear would shine through an edge."""
    return torch.cat([frame[:-1] * frame[-1:], frame[-1:]]) if has_alpha(frame) else frame


def uncovered(frame: Tensor, clear: float = 1e-4) -> Tensor:
    """Colours as they are of a frame [C, H, W] whose colours are multiplied by its alpha.

    clear  alpha up to which a colour is left as it is: it cannot be told any more
    """
    if not has_alpha(frame):
        return frame
    seen, alpha = frame[:-1], frame[-1:]
    return torch.cat([torch.where(alpha > clear, (seen / alpha.clamp(min=clear)).clamp(max=1), seen), alpha])
