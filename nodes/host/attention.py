"""Shared attention in ComfyUI's Flux: references walk along as rows of their own, and every other row looks at them.

References are noised to the step's level and appended to the batch inside the transformer's call, so each block has
their tokens at hand and nothing is kept between steps. With none given, the first picture of a batch is the reference
of the others. Everything is on a clone of the MODEL and in copies of its options; the model itself is not touched.
"""

from dataclasses import dataclass, replace
from uuid import uuid4

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...core.errors import AtelierError
from ...core.style.shared_attention import Sharing, StyleOptions, joined_bias, parse_blocks, share, token_weights
from ...core.style.structure import fitted
from .editing import SIDE, in_model_scale

ROWS = "flux_atelier.pictures"  # how many rows are the sampler's own, below what several references append
SEED = 7_919_001  # of the references' noise: unlike what anybody counts up from, so that no picture has the same
POSITIVE = 0  # ComfyUI's number of the positive text
PATCH = 2  # a side of one token, in latent places


@dataclass(frozen=True)
class Style:
    """What style is taken from, in a model's scale, and how.

    references       [R, C, h, w], or None for the first picture of each batch
    where            [M, H, W] masks of pictures: where they take; None is everywhere
    reference_where  [M, H, W] masks of references: what is taken; None is everything
    """

    references: Tensor | None
    options: StyleOptions
    where: Tensor | None = None
    reference_where: Tensor | None = None


class SharedAttention:
    """A wrapper of the transformer's call and a patch of its attention, for one Style; it keeps nothing."""

    def __init__(self, style: Style):
        self.style, self.blocks = style, parse_blocks(style.options.blocks)
        self.key = f"flux_atelier.style.{uuid4().hex}"

    def call(self, executor, x, timestep, context, y, guidance, ref_latents, control, transformer_options, **more):
        """The transformer's call with the references as rows behind the pictures."""
        options, rows = transformer_options, len(x)
        sigma = float(options["sigmas"].flatten()[0])
        pictures, sides = options.get(ROWS, rows), taking_sides(options)
        given, each = (timestep, context, y, guidance), pictures // len(sides)
        alone = self.style.references is None and each == 1
        if not self.style.options.active(sigma) or not any(sides) or alone:
            return executor(x, *given, ref_latents, control, options, **more)
        if self.style.references is not None:
            # Each part of the batch has references of its own with its text, whatever else runs at once.
            count = len(self.style.references)
            like = [part * each for part, takes in enumerate(sides) if takes for _ in range(count)]
            x = torch.cat((x, self._noised(x[like], sigma)))
            given = tuple(_longer(t, rows, like) for t in given)
            ref_latents = ref_latents and [_longer(t, rows, like) for t in ref_latents]
            control = _without_control(control, rows, len(like))
            more = {name: _longer(value, rows, like) for name, value in more.items()}
        sharing = self._sharing(x, rows, pictures, sides)
        options = options | {ROWS: pictures, self.key: sharing}
        return executor(x, *given, ref_latents, control, options, **more)[:rows]

    def attend(self, q, k, v, pe=None, attn_mask=None, extra_options=None):
        """The patch of one block's attention: its own arguments where the block does not share."""
        how = extra_options.get(self.key)
        if how is None or (extra_options["block_type"], extra_options["block_index"]) not in self.blocks:
            return {}
        how = _placed(how, extra_options["img_slice"][0], len(q))
        q, k, v, bias = share(q, k, v, how)
        if pe is not None:
            places = pe[:, :, how.image].repeat(1, 1, how.reference.shape[1], 1, 1, 1)
            pe = torch.cat((pe, places), 2)
        return {"q": q, "k": k, "v": v, "pe": pe, "attn_mask": joined_bias(attn_mask, bias, q.shape[2])}

    def _noised(self, x: Tensor, sigma: float) -> Tensor:
        """The references at a noise level, as often as x has rows for them, in its size and with its further channels."""
        clean = fitted(self.style.references.to(x.device, torch.float32), x.shape[-2:])
        # The same noise at every step: a reference walks its own straight line.
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(SEED)).to(clean)
        noised = torch.lerp(clean, noise, sigma).to(x).repeat(len(x) // len(clean), 1, 1, 1)
        return torch.cat((noised, x[:, noised.shape[1] :]), 1)

    def _sharing(self, x: Tensor, rows: int, pictures: int, sides: list[bool]) -> Sharing:
        """Who takes from whom; rows from this number on are this style's references."""
        device, each = x.device, pictures // len(sides)
        row, taking = torch.arange(pictures, device=device), torch.tensor(sides, device=device)
        side, place = row // each, row % each
        takes = taking[side]
        if len(x) > rows:
            count = (len(x) - rows) // sum(sides)
            turn = (taking.cumsum(0) - 1).clamp(min=0)[side]  # of those parts that take, which one this is
            reference = rows + turn[:, None] * count + torch.arange(count, device=device)
        else:
            reference, takes = (row - place)[:, None], takes & (place > 0)
        height, width = (-(-size // PATCH) for size in x.shape[-2:])
        where, given = self.style.where, self._given(reference.shape[1], height, width)
        if where is not None:
            maps = token_weights(where, height, width).to(device)
            where = maps[place % len(maps)]
        strength, statistics = self.style.options.strength, self.style.options.statistics
        given = given if given is None else given.to(device)
        return Sharing(reference, takes, 0, height * width, strength, statistics, where, given)

    def _given(self, count: int, height: int, width: int) -> Tensor | None:
        masks = self.style.reference_where
        if masks is None:
            return None
        maps = token_weights(masks, height, width)
        return maps[torch.arange(count) % len(maps)].flatten()


def share_style(model, style: Style):
    """A clone of a MODEL that takes style from references; the MODEL itself where the strength or a mask is 0.

    style  its references in raw VAE scale
    Raises AtelierError for a model without Flux's blocks, or for references of another model.
    """
    inner = model.model.diffusion_model
    if (
        not hasattr(inner, "double_blocks")
        or not hasattr(inner, "single_blocks")
        or getattr(inner, "patch_size", 0) != PATCH
    ):
        raise AtelierError(f"The MODEL ({type(model.model).__name__}) has not Flux.1's blocks. Load a Flux.1 model.")
    references = None if style.references is None else in_model_scale(model, style.references)
    shared = SharedAttention(Style(references, style.options, style.where, style.reference_where))
    nothing_given = style.reference_where is not None and not style.reference_where.any()
    if style.options.strength == 0 or nothing_given:
        return model
    patched = model.clone()
    patched.set_model_attn1_patch(shared.attend)
    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, shared.key, shared.call)
    return patched


def taking_sides(options: dict) -> list[bool]:
    """Which parts of the transformer's batch take a style: those of the text that is drawn.

    CFG subtracts the negative text's picture. With the style in both, more style on that side drives the result away
    from the style; with the style in one, CFG strengthens it. An edit's source describes the picture as it is.
    """
    if options.get(SIDE) == "source":
        return [False]
    return [side == POSITIVE for side in options.get("cond_or_uncond", [POSITIVE])]


def _placed(how: Sharing, first: int, rows: int) -> Sharing:
    """The same where the image tokens begin, which blocks know, with every row behind the pictures taking nothing."""
    pictures = len(how.takes)
    like = [0] * (rows - pictures)
    takes = torch.cat((how.takes, how.takes.new_zeros(len(like))))
    where = _longer(how.where, pictures, like)
    return replace(how, first=first, takes=takes, where=where, reference=_longer(how.reference, pictures, like))


def _longer(value, rows: int, like: list[int]):
    """A tensor over a batch with copies of some of its rows behind it; everything else as it is."""
    if not isinstance(value, Tensor) or value.ndim == 0 or len(value) != rows:
        return value
    return torch.cat((value, value[like]))


def _without_control(control: dict | None, rows: int, extra: int) -> dict | None:
    """A ControlNet's additions with none for the rows behind the pictures."""
    if control is None:
        return None
    return {
        part: [
            torch.cat((t, t.new_zeros(extra, *t.shape[1:]))) if isinstance(t, Tensor) and len(t) == rows else t
            for t in added
        ]
        for part, added in control.items()
    }
