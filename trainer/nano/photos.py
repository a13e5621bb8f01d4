"""The real photographs that scikit-image carries in its wheel: for the small VAE, and for the demo's curation."""

import numpy as np
from PIL import Image

TRAINING = (
    "astronaut", "motorcycle_left", "motorcycle_right", "hubble_deep_field", "retina", "ihc",
    "camera", "moon", "coins", "brick", "grass", "gravel", "color", "cell",
)  # fmt: skip
HELD_OUT = ("chelsea", "coffee", "rocket")


def photograph(name: str) -> Image.Image:
    """Open one of scikit-image's pictures by its file's stem, as RGB."""
    import skimage.data

    folder = skimage.data.__path__[0]
    for ending in ("png", "jpg"):
        try:
            return Image.open(f"{folder}/{name}.{ending}").convert("RGB")
        except FileNotFoundError:
            continue
    raise FileNotFoundError(f"scikit-image ships no picture called {name}")


def random_crop(photo: Image.Image, side: int, rng: np.random.Generator) -> np.ndarray:
    """A square part of a photograph at a random scale, mirrored half of the time, [side, side, 3] uint8."""
    limit = min(photo.size)
    size = int(rng.uniform(min(side, limit), limit))
    left, top = rng.integers(0, photo.width - size + 1), rng.integers(0, photo.height - size + 1)
    crop = photo.resize(
        (side, side), Image.Resampling.BICUBIC, box=(left, top, left + size, top + size), reducing_gap=2
    )
    if rng.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(crop)
