"""merge: LoRA files into one, by what they do."""

from collections.abc import Iterator
from pathlib import Path

from ...core.errors import AtelierError
from ...core.files import refuse_overwriting, write_text
from ...core.lora.formats import read_lora, write_lora
from ...core.lora.formats.layouts import SCHEMES
from ...core.lora.merge import MergeOptions, merge, summary
from .lora import DTYPES

SHOWN = 8  # lines of the report: all layers, other ranks, and the costliest layers


def add_merge(parser) -> None:
    from ..cli import add_options

    parser.add_argument("loras", nargs="+", help="files, each with its weight: style.safetensors=0.8")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    parser.add_argument("--rank", type=int, default=0, help="rank of the result; 0 keeps the sum exact")
    parser.add_argument("--layout", choices=tuple(SCHEMES), default="kohya", help="key layout")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float16", help="precision of the factors")
    parser.add_argument("--report", type=Path, help="text file to write with what the rank costs in every layer")
    add_options(parser, MergeOptions)


def run_merge(args) -> Iterator[str]:
    from ..cli import read_options

    options = read_options(MergeOptions, args)
    refuse_overwriting(args.out, [Path(name) for name, _ in map(_weighted, args.loras)])
    parts = [(Path(name).stem, weight, read_lora(Path(name))) for name, weight in map(_weighted, args.loras)]
    merged = merge(parts, args.rank, options)
    write_lora(args.out, merged.lora, args.layout, DTYPES[args.dtype])
    yield f"{args.out}: {summary(parts, merged, options)}"
    report = merged.report()
    if args.report:
        write_text(args.report, report + "\n")
    if merged.kept < 1:
        yield from report.splitlines()[:SHOWN]


def _weighted(word: str) -> tuple[str, float]:
    """File and weight of `file=0.8`; a file alone has the weight 1."""
    name, _, weight = word.rpartition("=") if "=" in word else (word, "", "1")
    try:
        return name, float(weight)
    except ValueError:
        raise AtelierError(f"{word} has the weight {weight!r}, which is no number. Write file=0.8.") from None


COMMANDS = {
    "merge": ("Merge LoRAs by what they do, exactly or re-compressed to a rank.", add_merge, run_merge),
}
