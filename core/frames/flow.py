"""Optical flow without weights: OpenCV's DIS where it is installed, a pyramid of Lucas-Kanade in torch otherwise."""

from collections.abc import Callable
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

Flow = Callable[[Tensor, Tensor], Tensor]
LUMA = (0.299, 0.587, 0.114)
COARSEST = 20  # pixels, the shorter side at which the pyramid ends
REACH = 4  # pixels of the coarsest level that the search looks around
LARGE = 576  # pixels: of frames with a longer shorter side, half the size is enough to see motion in
PATCH = 16  # pixels: DIS takes no smaller picture
FLAT = 1e-3  # gradient energy below which a pixel's motion is taken from its surroundings
ROBUST = 0.02  # brightness change from which a pixel counts less and less


def best_flow() -> Flow:
    """The better of the two that this machine has."""
    return dis_flow if find_spec("cv2") else lucas_kanade


def both_ways(estimate: Flow, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Flow from the first frame to the second and back, in one batch where the estimator takes one.

    estimate       dis_flow, lucas_kanade or another
    first, second  [C, H, W] in 0..1
    ->             two of [2, H, W]
    """
    if estimate is lucas_kanade:
        forward, backward = lucas_kanade(torch.stack([first, second]), torch.stack([second, first]))
        return forward, backward
    return estimate(first, second), estimate(second, first)


def dis_flow(first: Tensor, second: Tensor) -> Tensor:
    """Dense flow by DIS, medium preset (Kroeger et al. 2016), from OpenCV.

    first, second  [C, H, W] in 0..1: grey, or colours first
    ->             [2, H, W] pixels (x, y) from a place in the first frame to the same thing in the second
    """
    import cv2

    if min(first.shape[-2:]) < PATCH:
        return lucas_kanade(first, second)
    engine = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    a, b = ((luma(f) * 255).round().byte().cpu().numpy() for f in (first, second))
    return torch.from_numpy(engine.calc(a, b, None)).permute(2, 0, 1).to(first)


def luma(frame: Tensor) -> Tensor:
    """[..., C, H, W] -> [..., H, W], Rec. 601; one or two channels are grey."""
    if frame.shape[-3] < 3:
        return frame[..., 0, :, :].clamp(0, 1)
    weights = torch.tensor(LUMA, dtype=frame.dtype, device=frame.device)
    return (frame[..., :3, :, :] * weights[:, None, None]).sum(-3).clamp(0, 1)


def lucas_kanade(first: Tensor, second: Tensor, rounds: int = 6) -> Tensor:
    """Dense flow by iterated Lucas-Kanade on an image pyramid (Bouguet 2001), every pixel its own window.

    The coarsest level starts twice, at rest and from a search of whole-pixel shifts, and keeps what fits better;
    flat places take the motion of their textured surroundings.

    first, second  [C, H, W] or [B, C, H, W] in 0..1
    rounds         1 or more, steps on each level
    ->             [2, H, W] or [B, 2, H, W] pixels as in dis_flow
    """
    a, b = (luma(f).float().reshape(-1, 1, *f.shape[-2:]) for f in (first, second))
    levels = [(a, b)]
    while min(levels[-1][0].shape[-2:]) >= 2 * COARSEST:
        levels.append((_halve(levels[-1][0]), _halve(levels[-1][1])))
    flow = _start(*levels[-1], rounds)
    finest = int(min(a.shape[-2:]) > LARGE)
    for a, b in reversed(levels[finest:-1]):
        flow = _refine(a, b, _resized(flow, a.shape[-2:]), rounds)
    return _resized(flow, first.shape[-2:]).reshape(*first.shape[:-3], 2, *first.shape[-2:]).to(first)


def _halve(frame: Tensor) -> Tensor:
    return F.avg_pool2d(soften(frame, 3, 0.7), 2, ceil_mode=True)


def _resized(flow: Tensor, size: torch.Size) -> Tensor:
    """A flow for another size of the same frame: its vectors grow along."""
    if flow.shape[-2:] == size:
        return flow
    scale = flow.new_tensor([size[1] / flow.shape[-1], size[0] / flow.shape[-2]])
    return F.interpolate(flow, size=size, mode="bilinear", align_corners=False) * scale[:, None, None]


def _start(a: Tensor, b: Tensor, rounds: int) -> Tensor:
    """Flow on the coarsest level, [B, 2, H, W]: from rest or from the search, whichever fits a pixel better."""
    searched = _search(a, b)
    at_rest, found = (_refine(a, b, start, rounds) for start in (torch.zeros_like(searched), searched))
    rest_error, found_error = (soften((warp(b, f) - a).abs(), 5, 1.2) for f in (at_rest, found))
    return torch.where(found_error < 0.8 * rest_error - 0.002, found, at_rest)


def _search(a: Tensor, b: Tensor) -> Tensor:
    """The whole-pixel shift of least absolute difference around every pixel; a near one wins among equals."""
    height, width = a.shape[-2:]
    padded = F.pad(b, (REACH,) * 4, mode="replicate")
    shifts = [(x, y) for x in range(-REACH, REACH + 1) for y in range(-REACH, REACH + 1)]
    costs = [
        soften((a - padded[..., REACH + y :, REACH + x :][..., :height, :width]).abs(), 5, 1.2)
        + 0.0008 * (x * x + y * y) ** 0.5
        for x, y in shifts
    ]
    best = torch.cat(costs, 1).argmin(1)
    return torch.tensor(shifts, dtype=a.dtype, device=a.device)[best].permute(0, 3, 1, 2)


def _refine(a: Tensor, b: Tensor, flow: Tensor, rounds: int) -> Tensor:
    """Lucas-Kanade steps on one level, then flat places filled and outliers taken out."""
    gradients_a, texture = _gradients(a), torch.zeros_like(a)
    for _ in range(rounds):
        moved = warp(b, flow)
        gx, gy = ((p + q) / 2 for p, q in zip(gradients_a, _gradients(moved), strict=True))
        change = moved - a
        trust = ROBUST / (change.abs() + ROBUST)
        products = torch.cat([gx * gx, gx * gy, gy * gy, gx * change, gy * change], 1) * trust
        xx, xy, yy, xt, yt = soften(products, 9, 2.0).split(1, 1)
        xx, yy = xx + 2e-4, yy + 2e-4
        determinant = xx * yy - xy * xy
        step = torch.cat([xy * yt - yy * xt, xy * xt - xx * yt], 1) / determinant
        flow, texture = flow + step.clamp(-2, 2), determinant / (xx + yy)
    flow = _fill_flat(flow, texture)
    for _ in range(4):
        flow = _median(flow)
    return flow


def _gradients(frame: Tensor) -> tuple[Tensor, Tensor]:
    padded = F.pad(frame, (1, 1, 1, 1), mode="replicate")
    across = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    return across, (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2


def _fill_flat(flow: Tensor, texture: Tensor) -> Tensor:
    """Spread the motion of textured places into flat ones, a few pixels further at each pass."""
    own = texture / (texture + FLAT)
    filled, weight = flow, texture
    for _ in range(4):
        spread = soften(torch.cat([filled * weight, weight], 1), 5, 1.2)
        filled = flow * own + spread[:, :2] / (spread[:, 2:] + 1e-9) * (1 - own)
        weight = texture + 1e-5
    return filled


def soften(frame: Tensor, size: int, sigma: float) -> Tensor:
    """Blur with a Gaussian of a few pixels, the border repeated.

    frame  [B, C, H, W]
    size   odd, pixels of the window
    sigma  pixels
    """
    distance = torch.arange(size, dtype=frame.dtype, device=frame.device) - size // 2
    window = torch.exp(-distance.square() / (2 * sigma * sigma))
    window = (window / window.sum()).expand(frame.shape[1], 1, 1, size)
    padded = F.pad(frame, (size // 2,) * 4, mode="replicate")
    across = F.conv2d(padded, window, groups=frame.shape[1])
    return F.conv2d(across, window.transpose(2, 3), groups=frame.shape[1])


# Pairs to put in order so that the middle of nine values ends in the middle (Smith 1996).
NETWORK = (
    (1, 2), (4, 5), (7, 8), (0, 1), (3, 4), (6, 7), (1, 2), (4, 5), (7, 8), (0, 3), (5, 8), (4, 7),
    (3, 6), (1, 4), (2, 5), (4, 7), (4, 2), (6, 4), (4, 2),
)  # fmt: skip


def _median(flow: Tensor) -> Tensor:
    """3 x 3 median of each component: one wild vector among eight calm ones goes."""
    height, width = flow.shape[-2:]
    padded = F.pad(flow, (1, 1, 1, 1), mode="replicate")
    values = [padded[..., y : y + height, x : x + width] for y in range(3) for x in range(3)]
    for low, high in NETWORK:
        values[low], values[high] = torch.minimum(values[low], values[high]), torch.maximum(values[low], values[high])
    return values[4]


def warp(frame: Tensor, flow: Tensor) -> Tensor:
    """Sample a frame where the flow points.

    frame  [B, C, H, W]
    flow   [B, 2, H, W] pixels (x, y)
    ->     [B, C, H, W]; places outside take the border
    """
    height, width = frame.shape[-2:]
    across = torch.arange(width, device=frame.device, dtype=flow.dtype)
    down = torch.arange(height, device=frame.device, dtype=flow.dtype)
    gx = (across + flow[:, 0]) * 2 / max(width - 1, 1) - 1
    gy = (down[:, None] + flow[:, 1]) * 2 / max(height - 1, 1) - 1
    grid = torch.stack([gx, gy], -1)
    return F.grid_sample(frame, grid.to(frame), mode="bilinear", padding_mode="border", align_corners=True)
