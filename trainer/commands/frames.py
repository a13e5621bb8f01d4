"""interpolate: a video becomes smoother, file to file. fetch-rife: a model for it."""

from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

from ...core.counting import counted
from ...core.errors import AtelierError
from ...core.frames.interpolate import Method, flow_method, method_of, plain
from ...core.frames.rife import CPU, Rife
from ...core.frames.rife_models import FILES, fetch_model, known_models
from ...core.frames.stream import StreamOptions, partial_of, retime_file, source_key
from ...core.frames.timing import LONGEST_REPEAT, parse_rate
from ...core.frames.video import QUALITY, probe
from ...core.options import parse

LINES = 20  # of progress in a run


def add_interpolate(parser) -> None:
    parser.add_argument("video", type=Path, help="video file")
    parser.add_argument("--out", type=Path, required=True, help=".mp4, .mov or .mkv file to write")
    parser.add_argument("--rate", default="2x", help="frames a second: 60, 59.94, 60000/1001; or 2x, 4x. Default: 2x.")
    parser.add_argument("--method", choices=("flow", "rife"), help="Default: flow, or rife where a model is given.")
    parser.add_argument("--rife", type=Path, help="folder with a RIFE v4 model for ncnn")
    parser.add_argument("--gpu", type=int, default=CPU, help="Vulkan device for RIFE; -1 is the CPU")
    parser.add_argument("--fallback", action="store_true", help="mix frames where motion does not explain them")
    parser.add_argument("--no-cuts", action="store_true", help="do not look for cuts: every frame is in one shot")
    parser.add_argument(
        "--longest-repeat",
        type=int,
        default=LONGEST_REPEAT,
        help=f"a frame shown again up to this often moves evenly; 0 leaves repeats alone. Default: {LONGEST_REPEAT}.",
    )
    parser.add_argument(
        "--quality", type=int, default=QUALITY, help=f"constant rate factor of H.264, 0 to 51. Default: {QUALITY}."
    )
    parser.add_argument("--no-resume", action="store_true", help="begin anew instead of where a stopped run ended")


def run_interpolate(args) -> Iterator[str]:
    target = parse_rate(args.rate, probe(args.video).rate)
    with ExitStack() as stack:
        method, name = open_method(stack, args)
        given = dict(
            hold_cuts=not args.no_cuts,
            longest_repeat=args.longest_repeat,
            quality=args.quality,
            resume=not args.no_resume,
            method=name + (" with fallback" if args.fallback else ""),
        )
        options = parse(StreamOptions, given, "the command line")
        between = plain(method.sure, True) if args.fallback else method.plain
        yield from followed(retime_file(args.video, args.out, target, between, options), args.out)
    yield f"{args.out}: {float(target):.6g} frames a second"


def open_method(stack: ExitStack, args) -> tuple[Method, str]:
    """The interpolator that is asked for, and its name; raises AtelierError if RIFE has no model."""
    if (args.method or ("rife" if args.rife else "flow")) == "flow":
        return flow_method(), "flow"
    if args.rife is None:
        raise AtelierError("The rife method has no model. Give its folder with --rife; fetch-rife fetches one.")
    between = stack.enter_context(Rife(args.rife, args.gpu))
    return method_of(between), " ".join(["rife", *(source_key(args.rife / file) for file in FILES)])


def followed(steps, out: Path) -> Iterator[str]:
    """Lines for a film's steps; Ctrl-C leaves a part that plays, and says so."""
    told = 0
    try:
        with closing(steps):
            for number, step in enumerate(steps, 1):
                every = max(1, step.total // LINES) if step.total else 100
                if number == 1 and step.done > 1:
                    yield f"going on behind frame {step.done}"
                    told = step.done
                if step.report:
                    yield f"{counted(step.report.frames, 'frame')} written"
                    yield from (f"left out: {what}" for what in step.report.left_out)
                elif step.done >= told + every:
                    told = step.done
                    yield f"frame {step.done}" + (f" of {step.total}" if step.total else "")
    except KeyboardInterrupt:
        if partial_of(out).is_file():
            yield f"what is done plays from {partial_of(out)}; the same command goes on from there"
        raise


def add_fetch_rife(parser) -> None:
    parser.add_argument("name", choices=known_models(), metavar="name", help=", ".join(known_models()))
    parser.add_argument("folder", type=Path, help="where the model's folder will stand")


def run_fetch_rife(args) -> Iterator[str]:
    yield f"fetching {args.name}"
    folder = fetch_model(args.name, args.folder)
    yield f"{folder}: {sum(f.stat().st_size for f in folder.iterdir()) / 1e6:.1f} MB, digests and layout as they should be"


COMMANDS = {
    "interpolate": ("Bring a video to another frame rate, streaming; a stopped run goes on.", add_interpolate, run_interpolate),
    "fetch-rife": ("Fetch a RIFE model by its name, checked by its digest.", add_fetch_rife, run_fetch_rife),
}  # fmt: skip
