"""What buckets do to a dataset: how many pictures each gets, what every picture loses, which are too small for a batch.

Nothing is dropped: the trainer also runs a batch that is not full. A lone picture in its bucket is still worth knowing
of, because it is always a batch of its own and is fitted to an aspect that no other picture has.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..errors import AtelierError
from .buckets import Bucket, choose_bucket, make_buckets


class Placed(Protocol):
    """What is asked of a row; a StoredRow has it all."""

    @property
    def id(self) -> str: ...
    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def crop(self) -> Sequence[int] | None: ...
    @property
    def repeats(self) -> int: ...


@dataclass(frozen=True)
class PictureLoss:
    """One picture in its bucket: share of its pixels that are cut away, and how much it is enlarged."""

    id: str
    bucket: Bucket
    lost: float  # 0..1, by the crop and by fitting to the bucket
    enlarged: float  # bucket pixels per picture pixel along a side; above 1 detail is invented


@dataclass(frozen=True)
class BucketUse:
    """One bucket: its pictures, and how often they are seen in an epoch."""

    bucket: Bucket
    pictures: int
    seen: int  # repeats counted
    batches: int  # the last one may not be full
    lost: float  # mean share of pixels

    def short_of(self, batch_size: int) -> bool:
        """Whether there are fewer pictures than a batch has places."""
        return self.pictures < batch_size


@dataclass(frozen=True)
class BucketReport:
    """All buckets in use, the largest first, and every picture's loss in the rows' order."""

    resolution: int
    batch_size: int
    uses: tuple[BucketUse, ...]
    losses: tuple[PictureLoss, ...]

    @property
    def short(self) -> tuple[BucketUse, ...]:
        """Buckets with fewer pictures than the batch size."""
        return tuple(use for use in self.uses if use.short_of(self.batch_size))

    @property
    def lost(self) -> float:
        """Mean share of pixels lost a picture."""
        return sum(loss.lost for loss in self.losses) / len(self.losses) if self.losses else 0.0

    @property
    def enlarged(self) -> tuple[PictureLoss, ...]:
        """Pictures that are smaller than their bucket."""
        return tuple(loss for loss in self.losses if loss.enlarged > 1)

    def text(self) -> str:
        """The report as lines a person can read."""
        if not self.losses:
            return f"No pictures for buckets of {self.resolution}."
        worst = max(self.losses, key=lambda loss: loss.lost)
        lines = [
            f"{_many(len(self.losses), 'picture')} in {_many(len(self.uses), 'bucket')} of about "
            f"{self.resolution} x {self.resolution}, batch size {self.batch_size}",
            f"{'bucket':<12}{'pictures':>9}{'seen':>7}{'batches':>9}{'lost':>8}",
        ]
        for use in self.uses:
            mark = "  fewer than a batch" if use.short_of(self.batch_size) else ""
            lines.append(f"{_name(use.bucket):<12}{use.pictures:>9}{use.seen:>7}{use.batches:>9}{use.lost:>8.1%}{mark}")
        lines.append(f"Pixels lost: {self.lost:.1%} a picture, at most {worst.lost:.1%} ({worst.id}).")
        if self.enlarged:
            most = max(self.enlarged, key=lambda loss: loss.enlarged)
            lines.append(
                f"Enlarged: {_many(len(self.enlarged), 'picture')}, at most {most.enlarged:.2f} x ({most.id})."
            )
        if self.short:
            names = ", ".join(f"{_name(use.bucket)} ({use.pictures})" for use in self.short)
            lines.append(f"Fewer pictures than the batch size: {names}. They are trained on in smaller batches.")
        return "\n".join(lines)


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _name(bucket: Bucket) -> str:
    return f"{bucket.width}x{bucket.height}"


def report_buckets(
    rows: Iterable[Placed], resolution: int, batch_size: int = 1, buckets: Sequence[Bucket] | None = None
) -> BucketReport:
    """Sort pictures into buckets as the trainer does, and count what that costs.

    rows        id, width and height in pixels, crop [x, y, w, h] or None, repeats
    resolution  side of the square bucket, pixels
    batch_size  at least 1
    buckets     those allowed; None for all of that resolution
    ->          the report
    Raises AtelierError for a batch size below 1, for no bucket, or for a row without a size.
    """
    allowed = list(make_buckets(resolution) if buckets is None else buckets)
    if batch_size < 1 or not allowed:
        raise AtelierError(
            f"The batch size is {batch_size} and {len(allowed)} buckets are allowed. Both must be at least 1."
        )
    losses, found = [], defaultdict(list)
    for row in rows:
        loss = picture_loss(row, allowed)
        losses.append(loss)
        found[loss.bucket].append((loss, row.repeats))
    uses = []
    for bucket, held in found.items():
        seen = sum(repeats for _, repeats in held)
        lost = sum(loss.lost for loss, _ in held) / len(held)
        uses.append(BucketUse(bucket, len(held), seen, -(-seen // batch_size), lost))
    uses.sort(key=lambda use: (-use.pictures, use.bucket))
    return BucketReport(resolution, batch_size, tuple(uses), tuple(losses))


def picture_loss(row: Placed, buckets: list[Bucket]) -> PictureLoss:
    """What a picture loses and how much it is enlarged in the bucket nearest to its aspect.

    row      id, width, height, crop; the crop comes first, then the overhang is cut evenly
    buckets  those allowed
    Raises AtelierError if the row has no size.
    """
    width, height = (row.crop[2], row.crop[3]) if row.crop else (row.width, row.height)
    if min(width, height, row.width, row.height) < 1:
        raise AtelierError(f"{row.id} is {width} x {height} pixels. Leave it out, or scan it again.")
    bucket = choose_bucket(width, height, buckets)
    enlarged = max(bucket.width / width, bucket.height / height)
    kept = bucket.width * bucket.height / enlarged**2
    return PictureLoss(row.id, bucket, max(0.0, 1 - kept / (row.width * row.height)), enlarged)
