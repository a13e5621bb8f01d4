"""resize, prune and quantise: LoRA files made smaller, with what that costs."""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

from ...core.errors import AtelierError
from ...core.files import refuse_overwriting
from ...core.flux.checkpoint import Checkpoint
from ...core.lora.budget import Budget, norms_of, resize_to_size
from ...core.lora.formats import read_lora, write_lora
from ...core.lora.formats.layouts import SCHEMES
from ...core.lora.prune import Pruning, prune
from ...core.lora.quantise import STORAGES, quantise
from ...core.lora.resize import METHODS, Method, Resized, Rule, parse_rules, resize
from ...core.tensor_stream import open_tensors
from .lora import DTYPES

AMOUNTS = {
    "rank": "rank of every layer",
    "energy": "share of each layer's energy to keep, 0..1",
    "frobenius": "share of each layer's norm to keep, 0..1 (kohya's sv_fro)",
    "cumulative": "share of the sum of each layer's singular values to keep, 0..1 (kohya's sv_cumulative)",
    "ratio": "keep singular values of at least the layer's largest divided by this (kohya's sv_ratio)",
    "size": "size of the file in MiB",
}


def add_files(parser, dtype: bool = True) -> None:
    parser.add_argument("lora", type=Path, help="LoRA file")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    parser.add_argument("--layout", choices=tuple(SCHEMES), default="kohya", help="key layout")
    parser.add_argument("--table", action="store_true", help="tell of every layer")
    if dtype:
        parser.add_argument("--dtype", choices=tuple(DTYPES), default="float16", help="precision of the factors")


def add_resize(parser) -> None:
    add_files(parser)
    methods = parser.add_mutually_exclusive_group(required=True)
    for method, text in AMOUNTS.items():
        methods.add_argument(f"--{method}", type=float, help=text)
    parser.add_argument("--least", type=int, default=1, help="lowest rank of a layer; 0, with --size, lets layers go")
    parser.add_argument("--most", type=int, default=0, help="highest rank of a layer, 0 for no limit")
    parser.add_argument(
        "--rule", action="append", default=[], help='for some layers, such as "single.0-9: rank=4"; may be repeated'
    )
    parser.add_argument(
        "--base", type=Path, help="with --size: base model file, to count changes relative to its weights"
    )


def run_resize(args) -> Iterator[str]:
    refuse_overwriting(args.out, [args.lora])
    lora = read_lora(args.lora)
    rules = parse_rules("\n".join(args.rule), lora.base)
    if args.size is None:
        if args.base:
            raise AtelierError("A base model counts only for a size. Give --size, or leave --base out.")
        method: Method = next(m for m in METHODS if getattr(args, m) is not None)
        resized = resize(lora, Rule(method, getattr(args, method), args.least, args.most), rules)
    else:
        with open_tensors(args.base) if args.base else nullcontext() as file:
            norm = norms_of(Checkpoint(file)) if file else None
            budget = Budget(args.size, args.least, args.most, args.layout, DTYPES[args.dtype], norm)
            resized = resize_to_size(lora, budget, rules)
    yield from _written(args, resized)


def add_prune(parser) -> None:
    add_files(parser)
    parser.add_argument("--layers", default="", help='layers to drop, such as "double.0-3, *.txt_mlp"')
    parser.add_argument(
        "--share", type=float, default=0.0, help="share of the energy that may go with the weakest layers"
    )
    parser.add_argument(
        "--threshold",
        type=float,
        default=0.0,
        help="drop directions below this part of the largest singular value of all",
    )


def run_prune(args) -> Iterator[str]:
    refuse_overwriting(args.out, [args.lora])
    yield from _written(args, prune(read_lora(args.lora), Pruning(args.layers, args.share, args.threshold)))


def _written(args, resized: Resized) -> Iterator[str]:
    write_lora(args.out, resized.lora, args.layout, DTYPES[args.dtype])
    yield f"{args.out}: {args.out.stat().st_size / 2**20:.2f} MiB"
    yield resized.summary
    if args.table:
        yield resized.table


def add_quantise(parser) -> None:
    add_files(parser, dtype=False)
    parser.add_argument("--storage", choices=STORAGES, required=True, help="what the factors are stored in")


def run_quantise(args) -> Iterator[str]:
    refuse_overwriting(args.out, [args.lora])
    made = quantise(read_lora(args.lora), args.storage, args.layout)
    write_lora(args.out, made.lora, args.layout, made.dtype)
    yield f"{args.out}: {args.out.stat().st_size / 2**20:.2f} MiB"
    yield made.summary
    if args.table:
        yield made.table


COMMANDS = {
    "resize": ("Bring a LoRA to a lower rank, a share of its energy or a file size.", add_resize, run_resize),
    "prune": ("Leave out layers and small singular directions of a LoRA.", add_prune, run_prune),
    "quantise": ("Store a LoRA in fewer bits, the error told.", add_quantise, run_quantise),
}
