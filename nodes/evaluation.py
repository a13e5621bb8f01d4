"""What a LoRA does: the same prompts and seeds with and without it, and a figure for the style."""

import torch
from comfy_api.latest import io, ui

from ..core.dataset.view import View
from ..core.errors import AtelierError
from ..core.evaluation.grid import picture_grid
from ..core.evaluation.style_figure import describe, describe_files, style_position
from ..core.images import to_image, to_picture
from . import host, types
from .widgets import drawing_inputs

CATEGORY = "Flux Atelier/Evaluation"
MOST_TARGETS = 128  # pictures of the target style that are looked at


class CompareLora(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierCompareLora",
            display_name="Compare LoRA",
            category=CATEGORY,
            description="Draw the same prompts and seeds with and without a LoRA, side by side, with the style figure.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input("model", tooltip="The base model, without the LoRA."),
                io.Clip.Input("clip", tooltip="The CLIP."),
                io.Vae.Input("vae", tooltip="The VAE."),
                types.LoraModel.Input("lora", tooltip="The LoRA to look at."),
                io.String.Input("prompts", default="", multiline=True, tooltip="One prompt a line."),
                io.Float.Input("strength", default=1.0, min=-4.0, max=4.0, step=0.05, tooltip="Strength of the LoRA."),
                *drawing_inputs("Seed of the first prompt; the next ones count up.", side=1024),
                types.Dataset.Input(
                    "target", optional=True, tooltip="Pictures of the wanted style, for the style figure."
                ),
            ],
            outputs=[
                io.Image.Output(display_name="grid"),
                io.Image.Output(display_name="base pictures"),
                io.Image.Output(display_name="lora pictures"),
                io.Float.Output(display_name="style figure"),
            ],
        )

    @classmethod
    def execute(
        cls,
        model,
        clip,
        vae,
        lora,
        prompts,
        strength,
        seed,
        steps,
        guidance,
        width,
        height,
        target: View | None = None,
    ) -> io.NodeOutput:
        lines = [line.strip() for line in prompts.splitlines() if line.strip()]
        if not lines:
            raise AtelierError("Compare LoRA has no prompt. Write one prompt a line.")
        progress = host.Progress(2 * len(lines), cls.hidden.unique_id)
        # Text encoders, model and VAE each stay loaded for their part: on a small card every swap costs seconds.
        conditions = [host.condition(clip, line, guidance) for line in lines]
        latents = []
        for patched in (model, host.with_lora(model, lora, strength)):
            for i, condition in enumerate(conditions):
                empty = torch.zeros(1, 16, height // 8, width // 8)
                latents.append(host.sample(patched, condition, empty, seed + i, steps))
                progress.at(len(latents))
        drawn = [vae.decode(latent)[0].float() for latent in latents]
        base, with_it = torch.stack(drawn[: len(lines)]), torch.stack(drawn[len(lines) :])
        figure = style_figure(base, with_it, target) if target else 0.0
        rows = [[to_picture(p.permute(2, 0, 1)) for p in part] for part in (base, with_it)]
        sheet = picture_grid(rows, ["base", "LoRA"], lines, max(128, min(512, width)))
        image = to_image(sheet)
        return io.NodeOutput(image, base, with_it, figure, ui=ui.PreviewImage(image, cls=cls))


def style_figure(base: torch.Tensor, pictures: torch.Tensor, target: View) -> float:
    """Mean place of pictures between the base (0) and a dataset's style (1); IMAGE tensors [B, H, W, 3]."""
    height, width = base.shape[1:3]
    record = target.dataset()
    wanted = describe_files([record.file(r) for r in record.kept[:MOST_TARGETS]], (width, height))
    features = [describe(p.permute(0, 3, 1, 2)) for p in (pictures, base)]
    return style_position(*features, wanted).mean().item()


NODES = [CompareLora]
