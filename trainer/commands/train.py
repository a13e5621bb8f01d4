"""encode and train: a dataset becomes a LoRA, on nano-flux or on a person's own files."""

import argparse
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import torch

from ...core.dataset.captions import training_captions
from ...core.dataset.record import Dataset
from ...core.images import save_picture, to_picture
from ...core.lora.formats import Layout, write_lora
from ..cache import Cache, Sample, encode, put_text
from ..config import DataOptions, TrainOptions
from ..encoders import FileEncoder
from ..export import to_lora
from ..loop import Session, Step, train
from ..models import ModelFiles, from_folder, load_transformer, nano
from ..preview import draw_sample
from ..report import run_curves
from ..run import open_run
from .dataset import open_dataset


def add_model(parser: argparse.ArgumentParser) -> None:
    """The arguments that choose a model."""
    parser.add_argument("--model", default="nano", help="nano, a diffusers folder, or a Flux.1 .safetensors file")
    parser.add_argument("--parts", type=Path, help="diffusers folder with VAE and text encoders, for a single file")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")


def model_files(args) -> ModelFiles:
    """The files that the model arguments name; raises AtelierError for what is missing."""
    from ...core.errors import AtelierError

    if args.model == "nano":
        return nano()
    path = Path(args.model)
    if path.is_dir():
        return from_folder(path)
    if not args.parts:
        raise AtelierError(
            f"{path.name} holds only the transformer. Give --parts FOLDER, a diffusers folder with VAE and text encoders."
        )
    return from_folder(args.parts, path)


def device_of(args) -> torch.device:
    if args.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(args.device)


def add_train(parser: argparse.ArgumentParser) -> None:
    from ..cli import add_options

    parser.add_argument("dataset", type=Path, help="dataset file or folder")
    parser.add_argument("--run", type=Path, default=Path("runs/my-lora"), help="run folder; an existing one goes on")
    parser.add_argument("--config", help="TOML file with options; flags win over it")
    parser.add_argument("--cache", type=Path, help="folder of latents and text states (default: beside the run)")
    parser.add_argument(
        "--layout", choices=("kohya", "comfy", "diffusers"), default="kohya", help="key layout of the LoRA"
    )
    add_model(parser)
    add_options(parser, TrainOptions)


def run_train(args) -> Iterator[str]:
    from ..cli import read_options

    options = read_options(TrainOptions, args, args.config)
    files = model_files(args)
    cache = Cache(args.cache or args.run.parent / "cache")
    yield from train_folder(open_dataset(args.dataset), files, args.run, options, cache, device_of(args), args.layout)


def train_folder(
    dataset: Dataset, files: ModelFiles, folder: Path, options: TrainOptions, cache: Cache, device: torch.device,
    layout: Layout = "kohya",
) -> Iterator[str]:  # fmt: skip
    """Encode a dataset and train on it in a run folder, telling what happens line by line.

    Closing the iterator in the middle saves the state and the LoRA.
    """
    encoder = FileEncoder(files, device)
    samples: list[Sample] = [item.sample for item in encode(dataset, encoder, options.data, cache)]
    empty, _ = put_text("", encoder, cache)
    prompt = options.sample_prompt or training_captions(dataset.kept[0], options.data.trigger)[0]
    shown, _ = put_text(prompt, encoder, cache)
    if device.type == "cuda":
        encoder.release()
    yield f"encoded {len(samples)} pictures in {len({(s.height, s.width) for s in samples})} sizes"
    run = open_run(folder, folder.name, options, dataset.fingerprint, files.fingerprint)
    session = Session.start(load_transformer(files.transformer, device), samples, cache, empty, options, run)
    try:
        with closing(train(session)) as steps:
            for step in steps:
                if options.sample_every and step.step % options.sample_every == 0:
                    picture = to_picture(encoder.decode(draw_sample(session, shown))[0])
                    save_picture(run.sample_file(step.step), picture)
                if step.validation is not None or step.step == step.total or step.step % 25 == 0:
                    yield describe(step)
    finally:
        if session.step:
            write_lora(run.lora_file, to_lora(session.tree, options, session.step, len(session.samples)), layout)
            save_picture(run.folder / "curves.png", run_curves(run))
    yield f"{run.lora_file}: {session.step} steps"


def describe(step: Step) -> str:
    text = f"step {step.step}/{step.total}  loss {step.loss:.4f}  {step.seconds:.2f} s"
    return text if step.validation is None else f"{text}  validation {step.validation:.4f}"


def add_encode(parser: argparse.ArgumentParser) -> None:
    from ..cli import add_options

    parser.add_argument("dataset", type=Path, help="dataset file or folder")
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"), help="folder of latents and text states")
    add_model(parser)
    add_options(parser, DataOptions)


def run_encode(args) -> Iterator[str]:
    from ..cli import read_options

    cache, encoder = Cache(args.cache), FileEncoder(model_files(args), device_of(args))
    items = list(encode(open_dataset(args.dataset), encoder, read_options(DataOptions, args), cache))
    made = sum(item.made for item in items)
    yield f"{args.cache}: {len(items)} pictures, {made} encoded now, {len(items) - made} were there"


COMMANDS = {
    "encode": ("Encode pictures and captions ahead of a training.", add_encode, run_encode),
    "train": ("Train a LoRA; the same run folder goes on where it stopped.", add_train, run_train),
}
