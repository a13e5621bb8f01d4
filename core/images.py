"""Pictures as PIL images, as tensors and as files."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .files import write_whole


def to_tensor(picture: Image.Image) -> Tensor:
    """A picture as [3, H, W] float32 in 0..1."""
    return torch.from_numpy(np.asarray(picture.convert("RGB")).copy()).permute(2, 0, 1).float() / 255


def to_image(picture: Image.Image) -> Tensor:
    """A picture as ComfyUI's IMAGE, [1, H, W, 3] float32 in 0..1."""
    return to_tensor(picture).permute(1, 2, 0)[None]


def save_picture(path: Path, picture: Image.Image) -> Path:
    """Write a picture whole or not at all, as JPEG or PNG by the path's ending; PNG keeps transparency."""
    kind = "JPEG" if path.suffix.lower() in (".jpg", ".jpeg") else "PNG"
    made = picture if kind == "PNG" and picture.mode == "RGBA" else picture.convert("RGB")
    return write_whole(path, lambda part: made.save(part, kind, quality=92))


def to_picture(pixels: Tensor) -> Image.Image:
    """[3, H, W] in 0..1 as a picture; values outside are cut, non-finite ones black."""
    safe = torch.nan_to_num(pixels.detach().float().cpu(), nan=0.0, posinf=1.0, neginf=0.0).clamp(0, 1)
    return Image.fromarray((safe * 255).round().byte().permute(1, 2, 0).contiguous().numpy())


def fit_to(picture: Image.Image, width: int, height: int) -> Image.Image:
    """Scale a picture to cover width x height and cut the overhang evenly."""
    scale = max(width / picture.width, height / picture.height)
    cut_w, cut_h = width / scale, height / scale
    left, top = (picture.width - cut_w) / 2, (picture.height - cut_h) / 2
    box = (left, top, left + cut_w, top + cut_h)
    return picture.resize((width, height), Image.Resampling.LANCZOS, box=box, reducing_gap=3)


def within(picture: Image.Image, side: int) -> Image.Image:
    """Scale a picture down so that neither side is longer than `side`."""
    small = picture.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return small
