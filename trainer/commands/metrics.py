"""measure: how restyled videos are beside their source, in figures."""

from collections.abc import Iterator
from pathlib import Path

from ...core.dataset.folder import open_picture
from ...core.errors import AtelierError
from ...core.evaluation.metric_plot import MOST_CLIPS, check_names, write_measured
from ...core.evaluation.metrics import judge_clips, score_table
from ...core.frames.video import read_frames
from ...core.images import to_tensor


def add_measure(parser) -> None:
    parser.add_argument("source", type=Path, help="video before it was restyled; cuts are found on it")
    parser.add_argument("drawn", nargs="+", type=Path, help="restyled videos, as many frames and as large")
    parser.add_argument("--out", type=Path, required=True, help="folder for a CSV file each and the plot")
    parser.add_argument("--reference", type=Path, help="picture whose palette is wanted; the source's own without it")
    parser.add_argument("--labels", help="names of the videos, separated by commas; their files' without it")


def run_measure(args) -> Iterator[str]:
    if len(args.drawn) > MOST_CLIPS:
        raise AtelierError(f"There are {len(args.drawn)} videos. Measure at most {MOST_CLIPS} at a time.")
    names = [word.strip() for word in args.labels.split(",")] if args.labels else [path.stem for path in args.drawn]
    if len(names) != len(args.drawn):
        raise AtelierError(f"There are {len(names)} labels for {len(args.drawn)} videos. Give one for each.")
    check_names(names)
    reference = to_tensor(open_picture(args.reference)) if args.reference else None
    clips = {name: read_frames(path) for name, path in zip(names, args.drawn, strict=True)}
    scores = judge_clips(read_frames(args.source), clips, reference)
    write_measured(args.out, scores)
    yield score_table(scores)
    yield f"the figures of every frame and the plot are in {args.out}"


COMMANDS = {
    "measure": ("Measure restyled videos beside their source: a table, CSV files and a plot.", add_measure, run_measure)
}
