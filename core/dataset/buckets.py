"""Aspect buckets: the sizes a training picture is fitted to, so that portraits stay portraits."""

import math
from typing import NamedTuple

STEP = 16  # pixels: the VAE makes 8 smaller, the transformer pairs two
LONGEST = 2.0  # width / height of the widest bucket, and the reverse


class Bucket(NamedTuple):
    """Width and height in pixels, multiples of 16."""

    width: int
    height: int


def make_buckets(resolution: int) -> list[Bucket]:
    """All buckets whose area is about a square's of this side, from 1:2 to 2:1.

    resolution  pixels, a multiple of 16
    """
    area = resolution * resolution
    found = set()
    for width in range(STEP, 2 * resolution + 1, STEP):
        height = max(STEP, int(area / width) // STEP * STEP)
        if 1 / LONGEST <= width / height <= LONGEST:
            found |= {Bucket(width, height), Bucket(height, width)}
    return sorted(found | {Bucket(resolution, resolution)})


def choose_bucket(width: int, height: int, buckets: list[Bucket]) -> Bucket:
    """The bucket nearest to a picture in aspect ratio (by its logarithm), the larger area among equals."""
    ratio = math.log(width / height)
    return min(buckets, key=lambda b: (round(abs(math.log(b.width / b.height) - ratio), 9), -b.width * b.height))
