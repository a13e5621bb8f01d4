"""demo: the whole road on nano-flux, with one page at the end."""

from collections.abc import Iterator
from pathlib import Path


def add_demo(parser) -> None:
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder to write")
    parser.add_argument("--dataset", type=Path, help="your own folder of pictures")


def run_demo(args) -> Iterator[str]:
    from ..demo.road import Road

    args.out.mkdir(parents=True, exist_ok=True)
    yield from Road(args.out, args.dataset).walk()


COMMANDS = {"demo": ("Walk the whole road on nano-flux and write one page.", add_demo, run_demo)}
