"""Frames in between: for a batch of images, and for a video that streams from file to file."""

from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import torch
from comfy_api.latest import InputImpl, io

from ..core.errors import AtelierError
from ..core.frames.interpolate import Between, flow_between, interpolate
from ..core.frames.rife import Rife
from ..core.frames.rife_models import find_model
from ..core.frames.video import probe, read_frames, write_video
from . import host

CATEGORY = "Flux Atelier/Frames"
METHODS = ("flow", "rife")
BEST = -2  # the input that leaves the choice of the device to the pack


def shared_inputs() -> list:
    return [
        io.Combo.Input("factor", options=["2x", "4x"], default="2x", tooltip="How many times as many frames."),
        io.Combo.Input(
            "method",
            options=list(METHODS),
            default="flow",
            tooltip="flow: no model needed. rife: RIFE v4 by rife-ncnn-vulkan.",
        ),
        io.String.Input(
            "rife_model",
            default="",
            tooltip="Folder in models/frame_interpolation or models/rife with a RIFE v4 model for ncnn; only for the rife method.",
        ),
        io.Int.Input(
            "gpu",
            default=-2,
            min=-2,
            max=15,
            tooltip="Vulkan device of the rife method; -1 is the CPU, -2 the best real GPU, else the CPU.",
        ),
    ]


def open_method(stack: ExitStack, method: str, rife_model: str, gpu: int) -> Between:
    """The chosen interpolator, closed with the stack."""
    if method == "flow":
        return flow_between()
    device = None if gpu == BEST else gpu
    return stack.enter_context(Rife(find_rife(rife_model), device, waiting=host.check_cancel))


def find_rife(name: str) -> Path:
    """A RIFE model's folder in models/frame_interpolation or models/rife; raises AtelierError that names the place."""
    roots = [*host.model_folders("frame_interpolation"), *host.model_folders("rife")]
    if not name.strip():
        raise AtelierError(f"The rife method needs a model. Put one into {roots[0]} and write its folder's name.")
    return find_model(name.strip(), roots)


class InterpolateFrames(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierInterpolateFrames",
            display_name="Interpolate Frames",
            category=CATEGORY,
            description="Put frames between the frames of a batch. Long clips: Interpolate Video, which streams.",
            hidden=[io.Hidden.unique_id],
            inputs=[io.Image.Input("images", tooltip="The frames in order."), *shared_inputs()],
            outputs=[io.Image.Output(display_name="images")],
        )

    @classmethod
    def execute(cls, images, factor: str, method: str, rife_model: str, gpu: int) -> io.NodeOutput:
        times = int(factor[0])
        if len(images) < 2:
            raise AtelierError(f"There is {len(images)} frame. Give at least two.")
        progress, out = host.Progress((len(images) - 1) * times + 1, cls.hidden.unique_id), []
        with ExitStack() as stack:
            between = open_method(stack, method, rife_model, gpu)
            for frame in interpolate((f.permute(2, 0, 1) for f in images), times, between):
                out.append(frame.permute(1, 2, 0))
                progress.at(len(out))
        return io.NodeOutput(torch.stack(out))


class InterpolateVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierInterpolateVideo",
            display_name="Interpolate Video",
            category=CATEGORY,
            description="Put frames between a video's frames, streaming: memory does not grow with its length, sound stays.",
            hidden=[io.Hidden.unique_id],
            inputs=[io.Video.Input("video", tooltip="The video."), *shared_inputs()],
            outputs=[io.Video.Output(display_name="video")],
        )

    @classmethod
    def execute(cls, video, factor: str, method: str, rife_model: str, gpu: int) -> io.NodeOutput:
        times, out = int(factor[0]), host.temp_file(f"flux_atelier_{uuid4().hex}.mp4")
        with ExitStack() as stack:
            between = open_method(stack, method, rife_model, gpu)
            source = stack.enter_context(host.video_file(video))
            clip = probe(source)
            progress = host.Progress(max(1, (clip.frames - 1) * times + 1), cls.hidden.unique_id)
            frames = interpolate(read_frames(source), times, between)
            write_video(out, watched(frames, progress), clip.rate * times, sound=source)
        return io.NodeOutput(InputImpl.VideoFromFile(str(out)))


def watched(frames, progress: host.Progress):
    """The same frames, with the node's bar moved and a cancel noticed at each."""
    for number, frame in enumerate(frames, 1):
        progress.at(min(number, progress.total))
        yield frame


NODES = [InterpolateFrames, InterpolateVideo]
