"""Optical flow without weights: OpenCV's DIS where it is installed, a pyramid of Lucas-Kanade in torch otherwise."""

from collections.abc import Callable
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

Flow = Callable[[Tensor, Tensor], Tensor]
LUMA = (0.299, 0.587, 0.114)
COARSEST = 24  # pixels, the shorter side at which the pyramid starts


def best_flow() -> Flow:
    """The better of the two that this machine has."""
    return dis_flow if find_spec("cv2") else lucas_kanade


def dis_flow(first: Tensor, second: Tensor) -> Tensor:
    """Dense flow by DIS, medium preset (Kroeger et al. 2016), from OpenCV.

    first, second  [3, H, W] in 0..1
    ->             [2, H, W] pixels (x, y) from a place in the first frame to the same thing in the second
    """
    import cv2

    engine = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    a, b = ((luma(f) * 255).round().byte().cpu().numpy() for f in (first, second))
    if min(a.shape) < 16:  # smaller than a DIS patch
        return lucas_kanade(first, second)
    return torch.from_numpy(engine.calc(a, b, None)).permute(2, 0, 1).to(first)


def luma(frame: Tensor) -> Tensor:
    """[3, H, W] -> [H, W], Rec. 601."""
    weights = torch.tensor(LUMA, dtype=frame.dtype, device=frame.device)
    return (frame * weights[:, None, None]).sum(0).clamp(0, 1)


def lucas_kanade(first: Tensor, second: Tensor, rounds: int = 5) -> Tensor:
    """Dense flow by iterated Lucas-Kanade on an image pyramid (Bouguet 2001), every pixel its own window.

    Arguments and result as in dis_flow.
    """
    a, b = luma(first)[None, None], luma(second)[None, None]
    levels = [(a, b)]
    while min(levels[-1][0].shape[-2:]) >= 2 * COARSEST:
        levels.append(tuple(F.interpolate(x, scale_factor=0.5, mode="area") for x in levels[-1]))
    flow = a.new_zeros(1, 2, *levels[-1][0].shape[-2:])
    for a, b in reversed(levels):
        size = a.shape[-2:]
        grown = size[0] / flow.shape[-2]
        flow = F.interpolate(flow, size=size, mode="bilinear", align_corners=False) * grown
        for _ in range(rounds):
            flow = _median(flow + _update(a, warp(b, flow)))
    return flow[0]


def _update(a: Tensor, b: Tensor, window: int = 9) -> Tensor:
    """One Lucas-Kanade step, [1, 2, H, W]: least squares of the brightness change over a window, damped when flat."""
    mean = (a + b) / 2
    padded = F.pad(mean, (1, 1, 1, 1), mode="replicate")
    gx = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    gy = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
    change = b - a
    products = torch.cat([gx * gx, gx * gy, gy * gy, gx * change, gy * change], 1)
    for _ in range(2):  # two boxes make a soft window
        products = F.avg_pool2d(F.pad(products, (window // 2,) * 4, mode="replicate"), window, 1)
    xx, xy, yy, xt, yt = products.split(1, 1)
    xx, yy = xx + 1e-5, yy + 1e-5
    determinant = xx * yy - xy * xy
    step = torch.cat([xy * yt - yy * xt, xy * xt - xx * yt], 1) / determinant
    return step.clamp(-2, 2)


def _median(flow: Tensor) -> Tensor:
    """3 x 3 median of each component: one wild vector among eight calm ones goes."""
    patches = F.unfold(F.pad(flow, (1, 1, 1, 1), mode="replicate"), 3)
    middle = patches.view(1, 2, 9, -1).median(2).values
    return middle.view_as(flow)


def warp(frame: Tensor, flow: Tensor) -> Tensor:
    """Sample a frame where the flow points.

    frame  [1, C, H, W]
    flow   [1, 2, H, W] pixels (x, y)
    ->     [1, C, H, W]; places outside take the border
    """
    height, width = frame.shape[-2:]
    y, x = torch.meshgrid(
        torch.arange(height, device=frame.device, dtype=flow.dtype),
        torch.arange(width, device=frame.device, dtype=flow.dtype),
        indexing="ij",
    )
    gx = (x + flow[:, 0]) * 2 / max(width - 1, 1) - 1
    gy = (y + flow[:, 1]) * 2 / max(height - 1, 1) - 1
    grid = torch.stack([gx, gy], -1)
    return F.grid_sample(frame, grid.to(frame), mode="bilinear", padding_mode="border", align_corners=True)
