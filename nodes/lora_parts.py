"""A LoRA taken apart: ranked directions, what it shares with others, and what one direction looks like."""

import torch
from comfy_api.latest import io, ui

from ..core.evaluation.grid import picture_grid
from ..core.evaluation.lora_plots import titled
from ..core.images import to_image, to_picture
from ..core.lora.directions import WAYS, By, Selection, choose, name_of, select
from ..core.lora.shared import split_shared
from . import host, types
from .analysis import check_size, read_numbers, read_prompts, shown
from .loras import CATEGORY
from .widgets import drawing_inputs
from .wire import called, from_wire, to_wire

BY = (
    "direction: part k is the k-th direction of every layer. pair: the k-th strongest pair of a layer and a direction. "
    "energy: ten parts of a tenth of the energy each."
)
MANY = 10**6  # parts that no LoRA has, for looking at the text before the LoRA is there


def by_input() -> io.Input:
    return io.Combo.Input("by", options=list(WAYS), default="direction", tooltip=BY)


class SplitLora(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierSplitLora",
            display_name="Split LoRA",
            category=CATEGORY,
            description="Divide a LoRA into ranked parts and switch them on and off; both halves add up to it.",
            inputs=[
                types.LoraModel.Input("lora", tooltip="The LoRA to take apart."),
                by_input(),
                io.String.Input(
                    "parts",
                    default="1",
                    tooltip="Parts that are on, counted from 1: 1-3, 5; 4- for the fourth and all after it; -1 for all but the first.",
                ),
            ],
            outputs=[
                types.LoraModel.Output(display_name="lora"),
                types.LoraModel.Output(display_name="rest"),
                io.String.Output(display_name="report"),
            ],
        )

    @classmethod
    def validate_inputs(cls, parts=None):
        return host.told(choose, parts, MANY)

    @classmethod
    def execute(cls, lora, by: By, parts: str) -> io.NodeOutput:
        with torch.inference_mode(False):
            found = select(from_wire(lora, called(lora, "lora")), parts, by)
            halves = to_wire(found.lora), to_wire(found.rest)
        report = parts_report(found)
        return io.NodeOutput(*halves, report, ui=ui.PreviewText(report))


def parts_report(found: Selection, most: int = 24) -> str:
    """What is on, and the first parts' shares of the energy."""
    lines = [f"{len(found.chosen)} of {len(found.parts.shares)} parts are on, {found.share:.2%} of the energy"]
    for number, share in enumerate(found.parts.shares[:most], 1):
        lines.append(f"{'on ' if number in found.chosen else 'off'} {number}: {share:.2%}")
    if len(found.parts.shares) > most:
        lines.append(f"and {len(found.parts.shares) - most} more")
    return "\n".join(lines)


class SharedPart(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        other = io.Autogrow.TemplatePrefix(
            types.LoraModel.Input("other", tooltip="Another LoRA."), prefix="other", min=1, max=types.MOST_LORAS
        )
        return io.Schema(
            node_id="FluxAtelierSharedPart",
            display_name="Shared and Private Part",
            category=CATEGORY,
            description="Split a LoRA into what lies in the subspaces of other LoRAs and what is its own.",
            hidden=[io.Hidden.unique_id],
            inputs=[
                types.LoraModel.Input("lora", tooltip="The LoRA to split."),
                io.Autogrow.Input("others", template=other, tooltip="The LoRAs it may share something with."),
                io.Float.Input(
                    "energy",
                    default=0.99,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="Directions of the others that count: the strongest up to this share of each layer's energy.",
                ),
            ],
            outputs=[
                types.LoraModel.Output(display_name="shared"),
                types.LoraModel.Output(display_name="private"),
                io.String.Output(display_name="report"),
            ],
        )

    @classmethod
    def execute(cls, lora, others: dict, energy: float) -> io.NodeOutput:
        with torch.inference_mode(False):
            read = from_wire(lora, called(lora, "lora"))
            progress = host.Progress(len(read.modules), cls.hidden.unique_id)
            found = split_shared(
                read, [from_wire(other, called(other, socket)) for socket, other in others.items()], energy, progress.at
            )
            parts = to_wire(found.shared), to_wire(found.private)
        report = f"{found.share:.2%} of the energy is shared, {1 - found.share:.2%} is private"
        return io.NodeOutput(*parts, report, ui=ui.PreviewText(report))


class DirectionStrip(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierDirectionStrip",
            display_name="Direction Strip",
            category=CATEGORY,
            description="What one part of a LoRA does: the same seed at several strengths of that part, side by side.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input("model", tooltip="The base model, without the LoRA."),
                io.Clip.Input("clip", tooltip="The CLIP."),
                io.Vae.Input("vae", tooltip="The VAE."),
                types.LoraModel.Input("lora", tooltip="The LoRA to take apart."),
                by_input(),
                io.Int.Input("part", default=1, min=1, max=100000, tooltip="Which part, counted from 1."),
                io.String.Input(
                    "strengths",
                    default="-1, -0.5, 0, 0.5, 1",
                    tooltip="Strengths of the part, separated by commas; 1 is as in the LoRA.",
                ),
                io.Float.Input(
                    "rest", default=0.0, min=-4.0, max=4.0, step=0.05, tooltip="Strength of all other parts together."
                ),
                io.String.Input("prompt", default="", multiline=True, tooltip="One prompt a line, one row each."),
                *drawing_inputs("Seed of every picture.", side=1024),
            ],
            outputs=[io.Image.Output(display_name="strip"), io.Image.Output(display_name="pictures")],
        )

    @classmethod
    def validate_inputs(cls, strengths=None, width=None, height=None):
        read = host.told(read_numbers, strengths, "strengths")
        return (
            read if read is not True else host.told(lambda sides: check_size(**sides), dict(width=width, height=height))
        )

    @classmethod
    def execute(
        cls, model, clip, vae, lora, by, part, strengths, rest, prompt, seed, steps, guidance, width, height
    ) -> io.NodeOutput:
        check_size(width=width, height=height)
        lines, numbers = read_prompts(prompt, "Direction Strip"), read_numbers(strengths, "strengths")
        with torch.inference_mode(False):
            found = select(from_wire(lora, called(lora, "lora")), str(part), by)
            one, others = to_wire(found.lora), to_wire(found.rest)
        progress = host.Progress(len(lines) * len(numbers), cls.hidden.unique_id)
        conditions = [host.condition(clip, line, guidance) for line in lines]
        ground = host.with_lora(model, others, rest) if rest else model
        latents: dict[tuple[int, int], torch.Tensor] = {}
        for c, strength in enumerate(numbers):
            patched = host.with_lora(ground, one, strength) if strength else ground
            for r, condition in enumerate(conditions):
                empty = torch.zeros(1, 16, height // 8, width // 8)
                latents[r, c] = host.sample(patched, condition, empty, seed, steps)
                progress.at(len(latents))
        drawn = [vae.decode(latents[key])[0].float() for key in sorted(latents)]
        rows = [drawn[r * len(numbers) : (r + 1) * len(numbers)] for r in range(len(lines))]
        pictures = [[to_picture(p.permute(2, 0, 1)) for p in row] for row in rows]
        labels = [f"strength {number:g}" for number in numbers]
        sheet = picture_grid(pictures, lines if len(lines) > 1 else [""], labels, max(128, min(512, width)))
        told = f"{name_of(found.parts, part, by)}, {found.share:.2%} of the energy; all other parts at {rest:g}"
        image = to_image(titled(sheet, told))
        return io.NodeOutput(image, torch.stack(drawn), ui=shown([image], told, cls))


NODES = [SplitLora, SharedPart, DirectionStrip]
