"""Restyling pictures: drawn again with the model and its LoRA, their layout and colours kept as far as asked."""

from dataclasses import dataclass
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..core.errors import AtelierError
from ..core.images import to_picture
from ..core.style.color import transfer_color
from ..core.style.structure import blended, continued, free_places, layout_kept
from . import host
from .color import CATEGORY, masks_of, planes, with_planes
from .color import NODES as COLOR_NODES
from .host.restyling import Restyling, restyle
from .widgets import drawing_inputs

COLORS = ("drawn", "source", "reference")
STRUCTURE, UNTIL = (
    0.3,
    0.3,
)  # on nano-flux a painterly LoRA then keeps nearly all of its style, and its things their place


def kept_inputs() -> list:
    """What is kept of the pictures: saved prompts lack these inputs and have their defaults."""
    return [
        io.Float.Input(
            "structure",
            default=STRUCTURE,
            min=0.0,
            max=1.0,
            step=0.01,
            optional=True,
            tooltip="How far the coarse shapes follow the picture while it is drawn: 0 off, 1 fully.",
        ),
        io.Float.Input(
            "structure_until",
            default=UNTIL,
            min=0.0,
            max=1.0,
            step=0.01,
            optional=True,
            tooltip="Noise level down to which they do: 0 to the end, 1 at the first moment only.",
        ),
        io.Combo.Input(
            "color",
            options=list(COLORS),
            default=COLORS[0],
            optional=True,
            tooltip="Whose colours the result has: as they are drawn, each picture's own, or color_reference's.",
        ),
        io.Image.Input(
            "color_reference",
            optional=True,
            tooltip="The picture whose colours are taken where color is reference; the first of a batch counts.",
        ),
        io.Mask.Input(
            "mask",
            optional=True,
            tooltip="Where pictures are restyled: white is, black stays as it is, grey blends; one, or one for each picture.",
        ),
    ]


class Stylise(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierStylise",
            display_name="Stylise Pictures",
            category=CATEGORY,
            description="Draw pictures again with the model and its LoRA, from their own layout.",
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Image.Input("images", tooltip="The pictures, of any size; transparency stays."),
                io.Model.Input("model", tooltip="The model, with the LoRA applied."),
                io.Clip.Input("clip", tooltip="The CLIP."),
                io.Vae.Input("vae", tooltip="The VAE."),
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    tooltip="What the pictures show; one line for all, or one line each.",
                ),
                io.Float.Input(
                    "strength",
                    default=0.6,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of the steps that are gone back to noise: 0 keeps the picture, 1 forgets it.",
                ),
                *drawing_inputs("Seed of the noise.", steps="Sampling steps of the whole way."),
                *kept_inputs(),
            ],
            outputs=[io.Image.Output(display_name="images")],
        )

    @classmethod
    def execute(
        cls, images, model, clip, vae, prompt, strength, seed, steps, guidance, structure=STRUCTURE,
        structure_until=UNTIL, color=COLORS[0], color_reference=None, mask=None,
    ) -> io.NodeOutput:  # fmt: skip
        if color == "reference" and color_reference is None:
            raise AtelierError("The colour is reference, and there is none. Connect color_reference, or choose source.")
        lines, free = prompts_of(prompt, len(images)), masks_of(mask, images)
        if strength == 0:
            return io.NodeOutput(images)
        how = Restyling(strength, steps, seed, layout_kept(structure, structure_until, tuple(images.shape[1:3])))
        # Text encoders, VAE and model each stay loaded for their part: on a small card every swap costs seconds.
        conditions = [host.condition(clip, line, guidance) for line in lines]
        drawn = Drawing(model, vae, how, cls.hidden.unique_id).draw(planes(images), conditions, free)
        if color != "drawn":
            reference = None if color_reference is None or color == "source" else planes(color_reference[:1])
            drawn = recolored(drawn, planes(images), reference, free)
        return io.NodeOutput(with_planes(images, blended(planes(images), drawn, free)))


def prompts_of(prompt: str, count: int) -> list[str]:
    """Prompts, one for all pictures or one each; raises AtelierError for another number."""
    lines = [line.strip() for line in prompt.splitlines() if line.strip()] or [""]
    if len(lines) not in (1, count):
        raise AtelierError(f"There are {len(lines)} prompts for {count} pictures. Give one line, or one line each.")
    return lines


@dataclass(frozen=True)
class Drawing:
    """Pictures drawn again one after another, with the node's bar and previews."""

    model: Any
    vae: Any
    how: Restyling
    node_id: str | None

    def draw(self, pictures: Tensor, conditions: list, free: Tensor | None) -> Tensor:
        """Draw pictures again; those whose mask is black are left out.

        pictures    [B, 3, H, W] in 0..1
        conditions  one for all, or one each
        free        [B, 1, H, W] in 0..1
        ->          [B, 3, H, W] in 0..1
        """
        height, width = pictures.shape[-2:]
        out = pictures.clone()
        chosen = [i for i in range(len(out)) if free is None or free[i].any()]
        progress, done = host.Progress(len(chosen) * (self.how.taken + 1), self.node_id), 0

        def report(picture) -> None:
            nonlocal done
            done += 1
            progress.at(done, picture)

        latents = []
        for i in chosen:
            host.check_cancel()
            latents.append(self.vae.encode(continued(pictures[i : i + 1]).permute(0, 2, 3, 1)))
        for place, i in enumerate(chosen):
            where = None if free is None else free_places(continued(free[i : i + 1]))
            text = conditions[i % len(conditions)]
            latents[place] = restyle(self.model, text, latents[place], self.how, where, report)
        for i, latent in zip(chosen, latents, strict=True):
            seen = planes(self.vae.decode(latent))[..., :height, :width]
            out[i] = seen[0]
            report(to_picture(out[i]))
        return out


def recolored(drawn: Tensor, pictures: Tensor, reference: Tensor | None, free: Tensor | None) -> Tensor:
    """Give drawn pictures the colours of one reference, by one map, or without one each its own picture's.

    drawn, pictures  [B, 3, H, W] in 0..1
    reference        [1, 3, H', W']
    free             [B, 1, H, W], where colours are measured
    """
    # Blending comes after this and would thin out soft edges twice.
    whole = None if free is None else (free > 0).float()
    if reference is not None:
        return transfer_color(drawn, reference, mask=whole)
    out = torch.empty_like(drawn)
    for i in range(len(drawn)):
        host.check_cancel()
        own = None if whole is None else whole[i : i + 1]
        out[i] = transfer_color(drawn[i : i + 1], pictures[i : i + 1], mask=own, reference_mask=own)[0]
    return out


NODES = [Stylise, *COLOR_NODES]
