"""interpolate: a video becomes smoother, file to file."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from ...core.frames.interpolate import flow_between
from ...core.frames.rife import CPU, Rife
from ...core.frames.video import interpolate_video, probe


def add_interpolate(parser) -> None:
    parser.add_argument("video", type=Path, help="video file")
    parser.add_argument("--out", type=Path, required=True, help=".mp4 file to write")
    parser.add_argument("--factor", type=int, choices=(2, 4), default=2, help="how many times as many frames")
    parser.add_argument("--rife", type=Path, help="folder with a RIFE v4 model for ncnn; optical flow without it")
    parser.add_argument("--gpu", type=int, default=CPU, help="Vulkan device for RIFE; -1 is the CPU")


def run_interpolate(args) -> Iterator[str]:
    with ExitStack() as stack:
        between = stack.enter_context(Rife(args.rife, args.gpu)) if args.rife else flow_between()
        count = interpolate_video(args.video, args.out, args.factor, between)
    yield f"{args.out}: {count} frames at {float(probe(args.out).rate):.6g} a second"


COMMANDS = {"interpolate": ("Put frames between a video's frames, streaming.", add_interpolate, run_interpolate)}
