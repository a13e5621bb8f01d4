"""The embedded model: nano-flux as the MODEL, CLIP and VAE that ComfyUI's own nodes take, and pictures to practise on."""

import torch
from comfy_api.latest import io

from ..core.dataset.opening import hold_out
from ..core.dataset.unpack import Take
from ..core.files import read_tensors
from ..trainer.nano import files as nano_files
from ..trainer.nano import practice
from . import host, types
from .datasets import load
from .wire import LoraTensors

CATEGORY = "Flux Atelier/Practice"


class LoadNanoFlux(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierLoadNanoFlux",
            display_name="Load nano-flux",
            category=CATEGORY,
            description="A real but tiny Flux.1 that ships with the pack: draws coloured shapes at 64 pixels on any machine.",
            inputs=[],
            outputs=[
                io.Model.Output(display_name="model"),
                io.Clip.Output(display_name="clip"),
                io.Vae.Output(display_name="vae"),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(host.load_nano_model(), host.load_nano_clip(), host.load_nano_vae())


class PracticePictures(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierPracticePictures",
            display_name="Practice Pictures",
            category=CATEGORY,
            description="Draw a folder of captioned scenes to train nano-flux on, and a short clip of a moving shape.",
            inputs=[
                io.Combo.Input(
                    "hand",
                    options=list(practice.HANDS),
                    default="painted",
                    tooltip="painted: brush strokes; dusk: evening light; plain: as nano-flux knows them; subject: every other one a new shape.",
                ),
                io.Int.Input("count", default=48, min=1, max=512, tooltip="Number of pictures."),
                io.Int.Input(
                    "seed", default=7, min=0, max=2**31, control_after_generate="fixed", tooltip="Seed of the scenes."
                ),
                io.Boolean.Input(
                    "faults", default=False, tooltip="Add a copy, a blurred and a tiny picture for curation to find."
                ),
                io.Int.Input("frames", default=5, min=2, max=64, tooltip="Frames of the clip."),
            ],
            outputs=[types.Dataset.Output(display_name="dataset"), io.Image.Output(display_name="clip")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, hand: str, count: int, seed: int, faults: bool, frames: int) -> io.NodeOutput:
        name = f"{hand}-{count}-{seed}" + ("-faults" if faults else "")
        folder = practice.write_scenes(host.output_folder("flux_atelier", "practice", name), hand, count, seed, faults)
        clip = practice.moving_shape(frames).permute(0, 2, 3, 1).contiguous()
        view = hold_out(load(folder, Take(), cls.hidden.unique_id), 12)
        return io.NodeOutput(view, clip)


class PracticeLoras(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierPracticeLoras",
            display_name="Practice LoRAs",
            category=CATEGORY,
            description="Two LoRAs for nano-flux to try everything with: a painterly style, and a shape it does not know.",
            inputs=[],
            outputs=[
                types.LoraModel.Output(display_name="painted"),
                types.LoraModel.Output(display_name="diamond"),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        with torch.inference_mode(False):
            painted, diamond = (LoraTensors(*read_tensors(p), p.stem) for p in (nano_files.PAINTED, nano_files.DIAMOND))
        return io.NodeOutput(painted, diamond)


NODES = [LoadNanoFlux, PracticePictures, PracticeLoras]
