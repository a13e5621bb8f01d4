"""Restyling pictures: image to image with ComfyUI's sampler, and colour transfer."""

import torch
from comfy_api.latest import io

from ..core.errors import AtelierError
from ..core.style.color import transfer_color
from . import host
from .widgets import drawing_inputs

CATEGORY = "Flux Atelier/Style"


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
                io.Image.Input("images", tooltip="The pictures; sides are cut to multiples of 16 pixels."),
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
                    tooltip="Share of the way back to noise: 0 keeps the picture, 1 forgets it.",
                ),
                *drawing_inputs("Seed of the noise.", steps="Sampling steps of the whole way."),
            ],
            outputs=[io.Image.Output(display_name="images")],
        )

    @classmethod
    def execute(cls, images, model, clip, vae, prompt, strength, seed, steps, guidance) -> io.NodeOutput:
        height, width = (side // 16 * 16 for side in images.shape[1:3])
        if min(height, width) < 16:
            raise AtelierError(
                f"The pictures are {images.shape[2]} x {images.shape[1]} pixels. Give pictures of at least 16 x 16."
            )
        images = images[:, :height, :width, :3]
        if strength == 0:
            return io.NodeOutput(images)
        lines = [line.strip() for line in prompt.splitlines() if line.strip()] or [""]
        if len(lines) not in (1, len(images)):
            raise AtelierError(
                f"There are {len(lines)} prompts for {len(images)} pictures. Give one line, or one line each."
            )
        # Text encoders, VAE and model each stay loaded for their part: on a small card every swap costs seconds.
        conditions = [host.condition(clip, line, guidance) for line in lines]
        latents = [vae.encode(image[None]) for image in images]
        progress = host.Progress(len(images), cls.hidden.unique_id)
        for i, latent in enumerate(latents):
            latents[i] = host.sample(model, conditions[i % len(lines)], latent, seed, steps, strength)
            progress.at(i + 1)
        return io.NodeOutput(torch.stack([vae.decode(latent)[0].float() for latent in latents]))


class TransferColor(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierTransferColor",
            display_name="Transfer Colour",
            category=CATEGORY,
            description="Give pictures the palette of a reference; one map for the whole batch, so clips do not flicker.",
            inputs=[
                io.Image.Input("images", tooltip="The pictures."),
                io.Image.Input(
                    "reference", tooltip="The picture with the wanted colours; the first of a batch counts."
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="0 leaves the pictures, 1 transfers fully.",
                ),
            ],
            outputs=[io.Image.Output(display_name="images")],
        )

    @classmethod
    def execute(cls, images, reference, strength: float) -> io.NodeOutput:
        moved = transfer_color(images[..., :3].permute(0, 3, 1, 2), reference[0, ..., :3].permute(2, 0, 1), strength)
        return io.NodeOutput(moved.permute(0, 2, 3, 1).contiguous())


NODES = [Stylise, TransferColor]
