"""Frames in between: for a batch of images, and for a video that streams from file to file."""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import torch
from comfy_api.latest import io

from ..core.counting import counted
from ..core.errors import AtelierError
from ..core.frames.interpolate import Method, RetimeOptions, flow_method, made_surely, method_of, plain, planned
from ..core.frames.rife import Rife
from ..core.frames.rife_models import FILES, find_model
from ..core.frames.stream import StreamOptions, retime_file, run_key, source_key
from ..core.frames.timing import frame_count, parse_rate
from ..core.frames.video import probe
from . import host
from .video_files import THERE, Previews, fitting, followed, name_input, shown, told_name, video_path
from .widgets import inputs_of
from .written import removals

CATEGORY = "Flux Atelier/Frames"
BEST = -2  # the input that leaves the choice of the device to the pack
INTERP_MODEL = io.Custom("INTERP_MODEL")  # of core's Load Frame Interpolation Model
LOOK = 0.1  # seconds between looks at whether the person has cancelled

log = logging.getLogger("flux_atelier")


Made = TypeVar("Made")


class Beside:
    """A thread for work that would not see a cancel for seconds, such as the flow of a large frame."""

    def __init__(self, stack: ExitStack):
        """Start it; with the stack it ends, after what it is at."""
        self.pool = ThreadPoolExecutor(1)
        stack.callback(self.pool.shutdown, wait=False)

    def run(self, work: Callable[..., Made]) -> Callable[..., Made]:
        """The same function, done in the thread; a cancel is raised at once."""

        def done(*given) -> Made:
            task = self.pool.submit(torch.inference_mode(torch.is_inference_mode_enabled())(work), *given)
            while not wait([task], LOOK).done:
                host.check_cancel()
            return task.result()

        return done


@dataclass(frozen=True)
class Opened:
    """An interpolator at work, and its name: a stopped film goes on only with the same."""

    method: Method
    name: str


@dataclass(frozen=True)
class Choice:
    """What a node's inputs say of the interpolator."""

    method: str
    rife_model: str = ""
    gpu: int = BEST
    interp_model: Any = None

    def open(self, stack: ExitStack) -> Opened:
        """Open it; it is closed with the stack. Raises AtelierError for what is missing."""
        return METHODS[self.method](stack, self)


def open_flow(stack: ExitStack, choice: Choice) -> Opened:
    method = flow_method()
    beside = Beside(stack)
    return Opened(Method(beside.run(method.plain), beside.run(method.sure)), "flow")


def open_rife(stack: ExitStack, choice: Choice) -> Opened:
    folder = find_rife(choice.rife_model)
    device = None if choice.gpu == BEST else choice.gpu
    between = stack.enter_context(Rife(folder, device, waiting=host.check_cancel))
    return Opened(method_of(between), " ".join(["rife", *(source_key(folder / file) for file in FILES)]))


def open_model(stack: ExitStack, choice: Choice) -> Opened:
    if choice.interp_model is None:
        raise AtelierError(
            "The model method needs an interp_model. Connect ComfyUI's Load Frame Interpolation Model, "
            "or choose the flow method."
        )
    between = stack.enter_context(host.InterpolationModel(choice.interp_model, host.check_cancel))
    return Opened(method_of(between), between.key)


METHODS: dict[str, Callable[[ExitStack, Choice], Opened]] = {"flow": open_flow, "rife": open_rife, "model": open_model}


def find_rife(name: str) -> Path:
    """A RIFE model's folder in models/frame_interpolation or models/rife; raises AtelierError that names the place."""
    roots = [*host.model_folders("frame_interpolation"), *host.model_folders("rife")]
    if not name.strip():
        raise AtelierError(
            f"The rife method needs a model. Run Fetch RIFE Model, or put one into {roots[0]}, and write its folder's name."
        )
    return find_model(name.strip(), roots)


def method_inputs(rate: str) -> list:
    """The rate, and how frames are made."""
    return [
        io.String.Input(
            "rate",
            default=rate,
            tooltip="Frames a second of the result, such as 60, 59.94 or 60000/1001; or 2x, 4x, 8x of the source's.",
        ),
        io.Combo.Input(
            "method",
            options=list(METHODS),
            default="flow",
            tooltip="flow: no model needed. rife: RIFE v4 by rife-ncnn-vulkan. model: what is connected to interp_model.",
        ),
        io.String.Input(
            "rife_model",
            default="",
            tooltip="Folder in models/frame_interpolation or models/rife with a RIFE v4 model for ncnn; only for the rife method.",
        ),
        io.Int.Input(
            "gpu",
            default=BEST,
            min=BEST,
            max=15,
            tooltip="Vulkan device of the rife method; -1 is the CPU, -2 the best real GPU, else the CPU.",
        ),
    ]


def further_inputs(options: type[RetimeOptions], *names: str) -> list:
    """What a saved prompt may lack."""
    return [
        *inputs_of(options, names, optional=True),
        io.Boolean.Input(
            "fallback",
            default=False,
            optional=True,
            tooltip="Where motion does not explain a pair, mix the two frames instead.",
        ),
        INTERP_MODEL.Input(
            "interp_model",
            optional=True,
            tooltip="RIFE 4.25, 4.26 or FILM by Load Frame Interpolation Model; only for the model method.",
        ),
    ]


def told_rates(rate: str | None, source: str | float | None) -> bool | str:
    """Whether two rates can be read, for validate_inputs; what comes by wire is None and waits."""
    known = Fraction(24) if source is None else source
    return host.told(lambda _: read_rates("2x" if rate is None else rate, known), 0)


def read_rates(rate: str, source: str | float | Fraction) -> tuple[Fraction, Fraction]:
    """The source's rate and the wanted one; raises AtelierError for text that is none."""
    try:
        known = parse_rate(str(source))
    except AtelierError as error:
        raise AtelierError(f"Of source_rate: {error}") from None
    return known, parse_rate(rate, known)


class InterpolateFrames(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierInterpolateFrames",
            display_name="Interpolate Frames",
            category=CATEGORY,
            description="Bring a batch of frames to another frame rate. Long clips: Interpolate Video, which streams.",
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Image.Input("images", tooltip="The frames in order."),
                *method_inputs("2x"),
                io.MultiType.Input(
                    io.String.Input("source_rate", default="24", optional=True, tooltip="Frames a second of the images."),
                    [io.Float, io.Int],
                ),
                io.Boolean.Input(
                    "loop", default=False, optional=True, tooltip="The last frame leads back to the first, without a seam."
                ),
                *further_inputs(RetimeOptions, "hold_cuts", "longest_repeat"),
            ],
            outputs=[
                io.Image.Output(display_name="images"),
                io.Mask.Output(display_name="confidence"),
                io.Float.Output(display_name="rate"),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, rate=None, source_rate="24"):
        return told_rates(rate, source_rate)

    @classmethod
    def execute(
        cls, images, rate, method, rife_model, gpu, source_rate="24", loop=False, fallback=False, interp_model=None, **options
    ) -> io.NodeOutput:  # fmt: skip
        if not len(images):
            raise AtelierError("There are no frames. Give at least one.")
        rates = read_rates(rate, source_rate)
        count = frame_count(len(images), *rates, loop)
        progress, previews = host.Progress(count, cls.hidden.unique_id), Previews()
        out, confidence = images.new_empty((count, *images.shape[1:])), images.new_empty((count, *images.shape[1:3]))
        with ExitStack() as stack:
            sure = Choice(method, rife_model, gpu, interp_model).open(stack).method.sure
            frames = (image.permute(2, 0, 1) for image in images)
            for wanted in planned(frames, rates, RetimeOptions(**options), loop):
                frame, trust = made_surely(wanted, sure, fallback)
                out[wanted.number], confidence[wanted.number] = frame.permute(1, 2, 0), trust
                progress.at(wanted.number + 1, previews.of(frame))
        return io.NodeOutput(out, confidence, float(rates[1]))


class InterpolateVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierInterpolateVideo",
            display_name="Interpolate Video",
            category=CATEGORY,
            description="Bring a video to another frame rate, streaming: memory does not grow with its length, sound stays. "
            "A cancelled run leaves a part that plays, and goes on from it.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Video.Input("video", tooltip="The video."),
                *method_inputs("60"),
                name_input(optional=True),
                *further_inputs(StreamOptions, "quality", "hold_cuts", "longest_repeat"),
            ],
            outputs=[io.Video.Output(display_name="video")],
        )

    @classmethod
    def validate_inputs(cls, rate=None, name=""):
        named = told_name(name)
        return told_rates(rate, None) if named is True else named

    @classmethod
    def fingerprint_inputs(cls, **_):
        """A video that was removed is made again."""
        return removals()

    @classmethod
    def execute(
        cls, video, rate, method, rife_model, gpu, name="", fallback=False, interp_model=None, **options
    ) -> io.NodeOutput:
        with ExitStack() as stack:
            source = stack.enter_context(host.video_source(video))
            target = parse_rate(rate, probe(source.path).rate)
            told_rate = f"{float(target):.6g} a second"
            opened = Choice(method, rife_model, gpu, interp_model).open(stack)
            way = opened.name + (" with fallback" if fallback else "")
            task = StreamOptions(**options, method=way)
            key = run_key(source.key, target, task)
            out, left_out = fitting(source.path, video_path(source, name, key))
            if out.is_file():
                return shown(out, f"{THERE}, {told_rate}", left_out)
            between = plain(opened.method.sure, True) if fallback else opened.method.plain
            steps = retime_file(source.path, out, target, between, task, source.key)
            report = followed(steps, out, cls.hidden.unique_id)
        return shown(out, f"{counted(report.frames, 'frame')}, {told_rate}", left_out)


NODES = [InterpolateFrames, InterpolateVideo]
