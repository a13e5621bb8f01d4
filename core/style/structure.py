"""Keeping a picture's layout while it is drawn anew: where sampling starts, and what guides its coarse shapes."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from ..errors import AtelierError
from ..options import Options, parse

PIXELS = 8  # a side of one latent place, in pixels
TOKEN = 16  # a side of one image token, in pixels: what Flux draws has sides of whole tokens
COARSE = 1 / 16  # share of a picture's shorter side: what is wider belongs to its layout
FLAT = 1e-6  # a deviation below this has no contrast to give or to take


class StructureOptions(Options):
    """What is kept of a picture's layout, and for how long."""

    amount: float = Field(0.8, ge=0, le=1, description="How far the coarse shapes follow the picture: 0 off, 1 fully.")
    until: float = Field(
        0.3, ge=0, le=1, description="Noise level down to which they do: 0 to the end, 1 at the first moment only."
    )
    radius: float = Field(16.0, ge=1, le=512, description="Width in pixels; what is finer than this is free to change.")
    free_palette: bool = Field(
        True, description="Keep shapes only: mean and contrast come from what is drawn. Off keeps colours as well."
    )


def layout_kept(amount: float, until: float, size: tuple[int, int]) -> StructureOptions:
    """Options that keep the layout of a picture of a size in pixels, small and large pictures alike.

    amount, until  as in StructureOptions
    Raises AtelierError for one outside 0..1.
    """
    radius = min(max(1.0, COARSE * min(size)), 512.0)
    return parse(StructureOptions, {"amount": amount, "until": until, "radius": radius}, "The structure")


def from_strength(sigmas: Tensor, strength: float) -> Tensor:
    """The last part of a schedule, cut at a share of its steps, between two steps where need be.

    A share is what img2img calls denoise. As the first level lies between two steps, every strength differs from its
    neighbour and little changes little; a share of whole steps cuts where steps are cut.

    sigmas    [S + 1] falling
    strength  0 leaves no step, 1 leaves them all
    ->        [K + 1] from the level at that share to the last one
    Raises AtelierError for a strength outside 0..1.
    """
    if not 0 <= strength <= 1:
        raise AtelierError(f"The strength is {strength:g}. Choose a value from 0 to 1.")
    place = (len(sigmas) - 1) * (1 - strength)
    whole = round(place)
    if abs(place - whole) < 1e-6:
        return sigmas[whole:]
    before = math.floor(place)
    first = torch.lerp(sigmas[before], sigmas[before + 1], place - before)
    return torch.cat((first[None], sigmas[before + 1 :]))


def keep_structure(denoised: Tensor, content: Tensor, sigma: float, options: StructureOptions) -> Tensor:
    """Give a predicted picture the coarse shapes of another (low-pass guidance as in ILVR, Choi et al. 2021).

    denoised  [B, C, h, w] latent that the model predicts at this noise level
    content   [1 or B, C, h', w'] latent of the picture whose layout is kept; resized where its size differs
    sigma     noise level of the step, 0..1
    ->        [B, C, h, w]; the tensor itself where nothing is to be done
    """
    if options.amount == 0 or sigma < options.until:
        return denoised
    width = options.radius / PIXELS
    coarse = low_pass(denoised, width)
    wanted = low_pass(fitted(content.to(denoised), denoised.shape[-2:]), width)
    if options.free_palette:
        wanted = with_contrast_of(wanted, coarse)
    return denoised + options.amount * (wanted - coarse)


def with_structure(
    velocity: Callable[[Tensor, float], Tensor], content: Tensor, options: StructureOptions
) -> Callable[[Tensor, float], Tensor]:
    """A velocity whose predicted picture keeps another's coarse shapes; arguments as in keep_structure."""

    def guided(latent: Tensor, sigma: float) -> Tensor:
        slope = velocity(latent, sigma)
        if sigma == 0:
            return slope
        denoised = latent - sigma * slope
        kept = keep_structure(denoised, content, sigma, options)
        return slope if kept is denoised else (latent - kept) / sigma

    return guided


def low_pass(latent: Tensor, width: float) -> Tensor:
    """Blur by a Gaussian of a standard deviation in latent places; edges are continued.

    latent  [B, C, h, w]
    ->      [B, C, h, w]
    """
    reach = max(1, math.ceil(3 * width))
    steps = torch.arange(-reach, reach + 1, device=latent.device, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (steps / width) ** 2)
    kernel = (kernel / kernel.sum()).to(latent.dtype)
    rows = latent.flatten(0, 1)[:, None]
    rows = F.pad(rows, (reach, reach, reach, reach), mode="replicate")
    rows = F.conv2d(F.conv2d(rows, kernel[None, None, None]), kernel[None, None, :, None])
    return rows.view_as(latent)


def with_contrast_of(latent: Tensor, other: Tensor) -> Tensor:
    """Give each channel the mean and deviation of another latent's (AdaIN, Huang and Belongie 2017); a flat one stays flat."""
    places = (-2, -1)
    centred = latent - latent.mean(places, keepdim=True)
    deviation = centred.std(places, keepdim=True, correction=0)
    gain = torch.where(deviation > FLAT, other.std(places, keepdim=True, correction=0) / deviation.clamp(min=FLAT), 0)
    return centred * gain + other.mean(places, keepdim=True)


def fitted(latent: Tensor, size: tuple[int, int]) -> Tensor:
    """Scale a latent to cover a size and cut it to that, its centre in the centre.

    latent  [B, C, h', w']
    size    h and w
    ->      [B, C, h, w]; the latent itself where it has that size
    """
    have, want = latent.shape[-2:], tuple(size)
    if tuple(have) == want:
        return latent
    scale = max(want[0] / have[0], want[1] / have[1])
    near = [max(w, round(h * scale)) for h, w in zip(have, want, strict=True)]
    scaled = F.interpolate(latent, near, mode="bilinear", antialias=True, align_corners=False)
    top, left = ((n - w) // 2 for n, w in zip(near, want, strict=True))
    return scaled[..., top : top + want[0], left : left + want[1]]


def continued(pictures: Tensor, step: int = TOKEN) -> Tensor:
    """Continue the right and lower edges until both sides are multiples of a step.

    pictures  [B, C, H, W]
    ->        [B, C, H', W']; [..., :H, :W] of it is what came in, which is given back where nothing was missing
    """
    down, across = (-side % step for side in pictures.shape[-2:])
    return F.pad(pictures, (0, across, 0, down), mode="replicate") if down or across else pictures


def blended(pictures: Tensor, drawn: Tensor, free: Tensor | None) -> Tensor:
    """What was drawn where a mask is white, the pictures bit by bit where it is black, and a mix where it is grey.

    pictures, drawn  [..., 3, H, W]
    free             [..., 1, H, W] in 0..1; None is white
    ->               [..., 3, H, W] in the pictures' own float type
    """
    if free is None:
        return drawn.to(pictures)
    return torch.where(free > 0, torch.lerp(pictures, drawn.to(pictures), free.to(pictures)), pictures)


def free_places(mask: Tensor) -> Tensor:
    """The latent places in which any pixel of a mask may change.

    mask  [B, 1, H, W] in 0..1, sides multiples of 8
    ->    [B, 1, H / 8, W / 8], 1 or 0
    """
    return F.max_pool2d((mask > 0).float(), PIXELS)
