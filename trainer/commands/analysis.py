"""analyse, similarity and split: what LoRA files are made of."""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

from ...core.errors import AtelierError
from ...core.evaluation.lora_page import study_of, write_study
from ...core.evaluation.lora_plots import matrix_picture
from ...core.files import write_json
from ...core.flux.checkpoint import Checkpoint
from ...core.images import save_picture
from ...core.lora.compare import compare, told
from ...core.lora.directions import WAYS, select
from ...core.lora.formats import read_lora, write_lora
from ...core.lora.shared import split_shared
from ...core.tensor_stream import open_tensors
from .lora import DTYPES


def add_analyse(parser) -> None:
    parser.add_argument("lora", type=Path, help="LoRA file")
    parser.add_argument("--out", type=Path, required=True, help="folder for the page, the plots and the figures")
    parser.add_argument("--base", type=Path, help="base model file, to tell norms relative to its weights")


def run_analyse(args) -> Iterator[str]:
    lora = read_lora(args.lora)
    with open_tensors(args.base) if args.base else nullcontext() as file:
        study = study_of(args.lora.stem, lora, Checkpoint(file) if file else None)
    page = write_study(args.out, study)
    yield study.report()
    yield f"open {page}"


def add_similarity(parser) -> None:
    parser.add_argument("loras", nargs="+", type=Path, help="two LoRA files or more")
    parser.add_argument("--out", type=Path, help="folder for the matrices and the figures")
    parser.add_argument("--seed", type=int, default=0, help="of the entries whose signs are sampled")


def run_similarity(args) -> Iterator[str]:
    found = compare([(path.stem, read_lora(path)) for path in args.loras], args.seed)
    yield told(found)
    if args.out:
        matrix = matrix_picture(found.names, found.cosine.tolist(), "cosine of the whole change")
        save_picture(args.out / "similarity.png", matrix)
        yield str(write_json(args.out / "similarity.json", found.as_dict()))


def add_split(parser) -> None:
    parser.add_argument("lora", type=Path, help="LoRA file")
    parser.add_argument("--out", type=Path, required=True, help="file for the chosen, or the shared, part")
    parser.add_argument("--rest", type=Path, help="file for what is left")
    parser.add_argument("--parts", help='parts that are on, such as "1-3, 5"; write --parts=-1 for all but the first')
    parser.add_argument("--by", choices=WAYS, help="with --parts: what a part is, direction if left out")
    parser.add_argument("--against", nargs="+", type=Path, help="LoRA files: split by what is shared with them")
    parser.add_argument(
        "--energy", type=float, help="with --against: share of their energy that counts, 0.99 if left out"
    )
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float16", help="precision of the factors")


def run_split(args) -> Iterator[str]:
    if bool(args.parts) == bool(args.against):
        raise AtelierError("A split is by parts or against other LoRAs. Give either --parts or --against.")
    unused = "--energy" if args.parts and args.energy is not None else "--by" if args.against and args.by else None
    if unused:
        used = "--against" if args.parts else "--parts"
        raise AtelierError(f"{unused} is not used without {used}. Leave it out, or split by {used}.")
    lora = read_lora(args.lora)
    if args.parts:
        found = select(lora, args.parts, args.by or "direction")
        part, rest, share = found.lora, found.rest, found.share
    else:
        split = split_shared(
            lora, [read_lora(path) for path in args.against], 0.99 if args.energy is None else args.energy
        )
        part, rest, share = split.shared, split.private, split.share
    write_lora(args.out, part, dtype=DTYPES[args.dtype])
    yield f"{args.out}: {len(part.modules)} layers, {share:.2%} of the energy"
    if args.rest:
        write_lora(args.rest, rest, dtype=DTYPES[args.dtype])
        yield f"{args.rest}: {len(rest.modules)} layers, {1 - share:.2%} of the energy"


COMMANDS = {
    "analyse": ("Tell what each layer of a LoRA does, in figures, plots and one page.", add_analyse, run_analyse),
    "similarity": ("Compare LoRAs by their weights.", add_similarity, run_similarity),
    "split": ("Take a LoRA apart: some of its parts, or what it shares with others.", add_split, run_split),
}
