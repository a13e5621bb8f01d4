"""Style by shared attention: pictures attend to a reference's tokens as well as to their own.

StyleAligned (Hertz et al. 2024) over Flux's joint attention. Queries and keys of a picture take the mean and deviation
of the reference's, and the reference's keys and values stand beside its own. Everything happens after the norms and
before the rotary embedding, with text tokens in front of image tokens; text and reference are never written to.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from ..errors import AtelierError
from ..options import Options

FLAT = 1e-6  # a deviation below this has no contrast to give or to take


class StyleOptions(Options):
    """How much of a reference is taken, and when."""

    strength: float = Field(
        0.8, ge=0, le=2, description="How much of the reference is taken: 0 nothing; above 1 it outweighs the picture."
    )
    statistics: bool = Field(
        True, description="Give queries and keys the reference's mean and deviation as well: more of its colours."
    )
    blocks: str = Field(
        "all", max_length=2000, description="Blocks that share: all, or a list such as double 0-18, single 10-37."
    )
    sigma_from: float = Field(1.0, ge=0, le=1, description="Noise level at which sharing begins; 1 is noise.")
    sigma_to: float = Field(0.0, ge=0, le=1, description="Noise level at which sharing ends; 0 is the picture.")

    def active(self, sigma: float) -> bool:
        """Whether anything is taken at a noise level."""
        # Levels are float32 elsewhere: 0.7 written must hold 0.7 drawn.
        return self.strength > 0 and self.sigma_to - 1e-6 <= sigma <= self.sigma_from + 1e-6


@dataclass(frozen=True)
class Blocks:
    """The blocks that share, by kind; None stands for every one of a kind."""

    double: frozenset[int] | None
    single: frozenset[int] | None

    def __contains__(self, block: tuple[str, int]) -> bool:
        kind, index = block
        chosen = self.double if kind == "double" else self.single
        return chosen is None or index in chosen


@dataclass(frozen=True)
class Sharing:
    """Who takes from whom in one batch.

    reference  [B, R] rows that each row may take from
    takes      [B] bool: False for the references themselves, which stay as they are
    first      place of the first image token; text stands before it
    tokens     T, how many image tokens a picture has
    strength   as in StyleOptions
    statistics as in StyleOptions
    where      [B, T] in 0..1, where pictures take; None is everywhere
    given      [R * T] in 0..1, what of the references is taken; None is everything
    """

    reference: Tensor
    takes: Tensor
    first: int
    tokens: int
    strength: float
    statistics: bool = True
    where: Tensor | None = None
    given: Tensor | None = None

    @property
    def image(self) -> slice:
        return slice(self.first, self.first + self.tokens)


def share(q: Tensor, k: Tensor, v: Tensor, how: Sharing) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Let rows of a batch attend to other rows' image tokens.

    A reference's keys count with their weight in the softmax multiplied by the strength, so 0 is no sharing and 1 lets
    them weigh as much as the picture's own.

    q, k, v  [B, heads, L, D] text tokens, then image tokens
    ->       q [B, heads, L, D]; k, v [B, heads, L' + R T, D]; bias [B, 1, 1 or L, L' + R T] to add to the attention's
             logits, L' the keys that came
    """
    taken_k, taken_v = (_of_references(x, how) for x in (k, v))
    own = k.shape[2]
    if how.statistics:
        q, k = (_with_statistics(x, how) for x in (q, k))
    bias = shared_bias(how, q.shape[2], own).to(q)
    return q, torch.cat((k, taken_k), 2), torch.cat((v, taken_v), 2), bias


def shared_bias(how: Sharing, queries: int, own: int) -> Tensor:
    """What to add to the logits: nothing for own keys, the logarithm of their share for a reference's.

    ->  [B, 1, 1, own + R T], or [B, 1, queries, own + R T] where a part of the picture takes
    """
    count = how.reference.shape[1] * how.tokens
    weight = how.takes.float()[:, None, None] * how.strength
    if how.where is not None:
        # Text belongs to no place: it takes as much as the picture does on average.
        taking = how.where.to(weight).mean(1)[:, None].repeat(1, queries)
        taking[:, how.image] = how.where.to(weight)
        weight = weight * taking[..., None]
    weight = weight.expand(-1, -1, count)
    if how.given is not None:
        weight = weight * how.given.to(weight)
    bias = torch.cat((weight.new_zeros(*weight.shape[:2], own), weight.log()), -1)
    return bias[:, None]


def joined_bias(mask: Tensor | None, bias: Tensor, queries: int) -> Tensor:
    """An attention mask that was there before, with a bias over more keys added.

    mask  None, bool or float, of 2 to 4 dimensions that end in [queries, keys] or [1, keys], fewer keys than the bias
    bias  [B, 1, 1 or queries, keys']
    ->    [B, heads or 1, 1 or queries, keys']
    """
    if mask is None:
        return bias
    earlier = mask
    if earlier.dtype == torch.bool:
        earlier = torch.zeros(mask.shape, dtype=bias.dtype, device=bias.device).masked_fill(~mask, -torch.inf)
    earlier = earlier.to(bias)
    while earlier.ndim < 4:
        earlier = earlier[None] if earlier.ndim == 2 else earlier[:, None]
    grown = F.pad(earlier.expand(-1, -1, queries, -1), (0, bias.shape[-1] - earlier.shape[-1]))
    return grown + bias


def adain(content: Tensor, style: Tensor, weight: float | Tensor = 1.0) -> Tensor:
    """Give tokens the mean and deviation of other tokens (AdaIN, Huang and Belongie 2017), per head and channel.

    content  [B, heads, T, D]
    style    [B, heads, S, D]
    weight   0 leaves the tokens bit by bit, 1 moves them; a number or [B, 1, T or 1, 1]
    ->       [B, heads, T, D]
    """
    mean, deviation = content.mean(2, keepdim=True), content.std(2, keepdim=True, correction=0)
    gain = style.std(2, keepdim=True, correction=0) / deviation.clamp(min=FLAT)
    moved = (content - mean) * gain + style.mean(2, keepdim=True)
    return torch.lerp(content, moved, weight if isinstance(weight, (int, float)) else weight.to(content))


def token_weights(mask: Tensor, height: int, width: int) -> Tensor:
    """A mask over pixels as weights over image tokens.

    mask  [M, H, W] in 0..1; cut to the picture's shape around its centre, as references are
    ->    [M, height * width] in 0..1
    """
    have, want = mask.shape[-2:], (height, width)
    scale = min(h / w for h, w in zip(have, want, strict=True))
    tall, wide = (max(1, min(h, round(w * scale))) for h, w in zip(have, want, strict=True))
    top, left = (have[0] - tall) // 2, (have[1] - wide) // 2
    pixels = mask[:, None, top : top + tall, left : left + wide].float()
    return F.adaptive_avg_pool2d(pixels, want).flatten(1).clamp(0, 1)


def parse_blocks(text: str) -> Blocks:
    """Read which blocks share: all, or entries such as double, single 10-37 or double 3.

    Raises AtelierError that names the entry it cannot read.
    """
    entries = [e for e in (part.strip().lower() for part in text.replace("\n", ",").split(",")) if e]
    if not entries:
        raise AtelierError("There are no blocks that share. Write all, or a list such as double 0-18, single 10-37.")
    chosen: dict[str, set[int] | None] = {"double": set(), "single": set()}
    for entry in entries:
        kind, _, span = entry.partition(" ")
        if entry == "all":
            chosen = {"double": None, "single": None}
        elif kind in chosen and not span:
            chosen[kind] = None
        elif kind in chosen:
            earlier, found = chosen[kind], _span(span, entry)
            chosen[kind] = None if earlier is None else earlier | found
        else:
            raise _unread(entry)
    return Blocks(*(None if part is None else frozenset(part) for part in chosen.values()))


def _span(text: str, entry: str) -> set[int]:
    ends = text.replace(" ", "").split("-")
    if len(ends) > 2 or not all(end.isdecimal() and len(end) < 4 for end in ends) or int(ends[0]) > int(ends[-1]):
        raise _unread(entry)
    return set(range(int(ends[0]), int(ends[-1]) + 1))


def _unread(entry: str) -> AtelierError:
    return AtelierError(
        f"The blocks entry {entry!r} is not understood. Write all, double, single, or such as single 10-37."
    )


def _of_references(x: Tensor, how: Sharing) -> Tensor:
    """The references' image tokens beside each row, [B, heads, R * T, D]."""
    return x[:, :, how.image][how.reference].transpose(1, 2).flatten(2, 3)


def _with_statistics(x: Tensor, how: Sharing) -> Tensor:
    weight = how.takes.float()[:, None, None, None] * min(how.strength, 1.0)
    if how.where is not None:
        weight = weight * how.where.to(weight)[:, None, :, None]
    image = adain(x[:, :, how.image], _of_references(x, how), weight)
    return torch.cat((x[:, :, : how.first], image, x[:, :, how.first + how.tokens :]), 2)
