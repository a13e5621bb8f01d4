"""Clips that are steady: stylised frames held together, brightness evened out, and noise that moves along."""

import torch
from comfy_api.latest import io
from torch import Tensor

from ..core.counting import counted
from ..core.errors import AtelierError
from ..core.files import digest_of
from ..core.frames.deflicker import DeflickerOptions, aimed_levels, deflicker, deflicker_file, measure_levels
from ..core.frames.stabilise import StabiliseOptions, stabilise
from . import host
from .color import cuts_in, planes, with_planes
from .host.clips import WarpedNoise
from .video_files import THERE, Previews, name_input, shown, told_name, video_path
from .widgets import inputs_of
from .written import removals

CATEGORY = "Flux Atelier/Frames"


class StabiliseClip(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierStabiliseClip",
            display_name="Stabilise Clip",
            category=CATEGORY,
            description="Hold the frames of a stylised clip together along the motion of its source; begins anew at cuts.",
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Image.Input("source", tooltip="The frames before they were stylised: they tell the motion and the cuts."),
                io.Image.Input("drawn", tooltip="The stylised frames, as many and as large."),
                *inputs_of(StabiliseOptions),
            ],
            outputs=[io.Image.Output(display_name="images")],
        )  # fmt: skip

    @classmethod
    def execute(cls, source, drawn, **options) -> io.NodeOutput:
        refuse_unlike(source, drawn)
        wanted, out = StabiliseOptions(**options), torch.empty_like(planes(drawn))
        progress, previews = host.Progress(max(1, len(drawn)), cls.hidden.unique_id), Previews()
        cuts = cuts_in(source)
        for number, frame in enumerate(stabilise(planes(source), planes(drawn), wanted, resets=cuts)):
            out[number] = frame
            progress.at(number + 1, previews.of(frame))
        return io.NodeOutput(with_planes(drawn, out), ui={"text": [counted(len(cuts) + 1, "shot")]})


def refuse_unlike(source: Tensor, drawn: Tensor) -> None:
    """Raise AtelierError for IMAGEs of two lengths or sizes, before any motion is looked for."""
    if len(source) != len(drawn):
        raise AtelierError(
            f"The source has {len(source)} frames and the stylised clip {len(drawn)}. Give clips of one length."
        )
    if source.shape[1:3] != drawn.shape[1:3]:
        (height, width), (tall, wide) = source.shape[1:3], drawn.shape[1:3]
        raise AtelierError(
            f"The source is {width} x {height} and the stylised clip {wide} x {tall}. Bring both clips to one size."
        )


class Deflicker(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierDeflicker",
            display_name="Deflicker",
            category=CATEGORY,
            description="Even out brightness and colour from frame to frame, shot by shot. Long clips: Deflicker Video.",
            hidden=[io.Hidden.unique_id],
            inputs=[io.Image.Input("images", tooltip="The frames in order."), *inputs_of(DeflickerOptions)],
            outputs=[io.Image.Output(display_name="images")],
        )

    @classmethod
    def execute(cls, images, **options) -> io.NodeOutput:
        wanted, out = DeflickerOptions(**options), torch.empty_like(planes(images))
        progress, previews = host.Progress(max(1, len(images)), cls.hidden.unique_id), Previews()
        found, cuts = measure_levels(host.noticed(planes(images))), cuts_in(images)
        aim = aimed_levels(found, wanted, cuts)
        for number, frame in enumerate(deflicker(planes(images), found, aim, wanted)):
            out[number] = frame
            progress.at(number + 1, previews.of(frame))
        return io.NodeOutput(with_planes(images, out), ui={"text": [counted(len(cuts) + 1, "shot")]})


class DeflickerVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierDeflickerVideo",
            display_name="Deflicker Video",
            category=CATEGORY,
            description="Even out a video's brightness and colour, shot by shot, streaming: memory does not grow, sound stays.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Video.Input("video", tooltip="The video."),
                *inputs_of(DeflickerOptions),
                name_input(),
            ],
            outputs=[io.Video.Output(display_name="video")],
        )

    @classmethod
    def validate_inputs(cls, name=None):
        return told_name(name)

    @classmethod
    def fingerprint_inputs(cls, **_):
        """A video that was removed is made again."""
        return removals()

    @classmethod
    def execute(cls, video, name: str, **options) -> io.NodeOutput:
        wanted = DeflickerOptions(**options)
        with host.video_source(video) as source:
            key = digest_of("deflicker", source.key, wanted.model_dump())
            out = video_path(source, name, key)
            if out.is_file():
                return shown(out, THERE)
            progress, previews = host.Progress(1, cls.hidden.unique_id), Previews()

            def watch(done: int, total: int, frame: Tensor) -> None:
                progress.total = max(done, total)
                progress.at(done, previews.of(frame))

            count, shots = deflicker_file(source.path, out, wanted, watch)
        return shown(out, f"{counted(count, 'frame')}, {counted(shots, 'shot')}")


class WarpedNoiseNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierWarpedNoise",
            display_name="Warped Noise",
            category=CATEGORY,
            description="Noise that moves with a clip, for SamplerCustomAdvanced and a batch of frames: strokes stay on things.",
            inputs=[
                io.Image.Input("images", tooltip="The frames in order; they tell the motion and the cuts."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**63 - 1,
                    control_after_generate="fixed",
                    tooltip="Seed of the noise.",
                ),
                io.Int.Input(
                    "finer",
                    default=1,
                    min=1,
                    max=4,
                    tooltip="Cells along a side of one latent value: 1 moves the noise by whole values, 2 or more lets it glide.",
                ),
            ],
            outputs=[io.Noise.Output(display_name="noise")],
        )

    @classmethod
    def execute(cls, images, seed: int, finer: int) -> io.NodeOutput:
        if not len(images):
            raise AtelierError("There are no frames. Give at least one.")
        return io.NodeOutput(WarpedNoise(planes(images), seed, finer, cuts_in(images)))


NODES = [StabiliseClip, Deflicker, DeflickerVideo, WarpedNoiseNode]
