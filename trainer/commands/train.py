"""encode and train: a dataset becomes a LoRA, on nano-flux or on a person's own files."""

import argparse
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from ...core.dataset.record import Dataset
from ...core.files import digest_of, digest_tensors, write_text
from ...core.images import save_picture
from ...core.lora.formats import read_lora, to_layout, write_lora
from ...core.lora.record import Layout, Lora
from ...core.options import nest, parse, to_toml
from ..cache import Cache, Sample, encode, encode_regularisation, put_text, sample_prompts
from ..config import DataOptions, TrainOptions
from ..encoders import FileEncoder
from ..export import settings_of, to_lora
from ..loop import Step, train
from ..memory import Plan, Setting, plan_run
from ..models import ModelFiles, Placement, from_folder, load_transformer, nano, shape_in, weight_bytes
from ..packed import Weights
from ..preview import sample_grid
from ..report import run_curves
from ..run import Run, open_run
from ..session import Extras, Session, check_options
from ..world import World, join, leave, local_device
from .dataset import record_at


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
    parser.add_argument("--regularisation", type=Path, help="dataset file or folder of pictures of the class")
    parser.add_argument("--start-from", type=Path, help="LoRA file to go on from, in any layout")
    parser.add_argument("--training-adapter", type=Path, help="LoRA that lies under the training, such as schnell's")
    parser.add_argument(
        "--weights", choices=("file", "fp8", "int8", "nf4"), default="file", help="how weights are held"
    )
    parser.add_argument("--shard", action="store_true", help="under torchrun: deal the weights out to all processes")
    parser.add_argument("--plan", action="store_true", help="only say what the training would need, then stop")
    add_model(parser)
    add_options(parser, TrainOptions)


def run_train(args) -> Iterator[str]:
    from ..cli import read_options

    options = read_options(TrainOptions, args, args.config)
    files = model_files(args)
    given = Given(
        record_at(args.dataset), files, args.run, options, Cache(args.cache or args.run.parent / "cache"),
        local_device(device_of(args)), args.layout, record_at(args.regularisation) if args.regularisation else None,
        *(read_lora(path) if path else None for path in (args.start_from, args.training_adapter)),
        weights=args.weights, shard=args.shard,
    )  # fmt: skip
    if args.plan:
        yield plan_of(given, []).text
        return
    yield from train_folder(given)


@dataclass(frozen=True)
class Given:
    """Everything that a training on files starts from."""

    dataset: Dataset
    files: ModelFiles
    folder: Path
    options: TrainOptions
    cache: Cache
    device: torch.device
    layout: Layout = "kohya"
    regularisation: Dataset | None = None
    start_from: Lora | None = None
    training_adapter: Lora | None = None
    weights: Weights = "file"
    shard: bool = False

    def extras(self, setting: Setting, world: World) -> Extras:
        """What the run has besides its pictures."""
        return Extras.of(self.start_from, self.training_adapter, setting, world)

    @property
    def fingerprints(self) -> tuple[str, str, str]:
        """Digests of the pictures, the model as it is held, and the LoRAs the run begins with."""
        pictures = self.dataset.fingerprint
        if self.regularisation:
            pictures = digest_of(pictures, self.regularisation.fingerprint)
        model = self.files.fingerprint if self.weights == "file" else f"{self.files.fingerprint}-{self.weights}"
        given = [
            digest_tensors(to_layout(lora, "kohya", torch.float32)) if lora else ""
            for lora in (self.start_from, self.training_adapter)
        ]
        return pictures, model, "-".join(given) if any(given) else ""


def plan_of(given: Given, samples: list[Sample]) -> Plan:
    """What the training will need on its device."""
    files, device = given.files, given.device
    share = {"file": 1.0, "fp8": 0.5, "int8": 0.5, "nf4": 0.28}[given.weights]
    weights = 0 if device.type == "cpu" else int(weight_bytes(files.transformer) * share)
    return plan_run(
        shape_in(files.transformer), weights, samples, given.options, device, free_bytes(device), files.t5_length
    )


def train_folder(given: Given) -> Iterator[str]:
    """Encode a dataset and train on it in a run folder, telling what happens line by line.

    Under torchrun every process does this, and the first one writes and tells. Closing the iterator in the middle saves
    the state and the LoRA.
    """
    options, device, cache = given.options, given.device, given.cache
    check_options(options, shape_in(given.files.transformer))
    world = join(device)
    if not world.first:
        world.wait()  # the first process encodes for all
    encoder = FileEncoder(given.files, device)
    samples = encode_all(given, encoder)
    empty, _ = put_text("", encoder, cache)
    prompts = sample_prompts(options, given.dataset, encoder, cache)
    if device.type == "cuda":
        encoder.release()
    if world.first:
        yield f"encoded {len(samples)} pictures in {len({(s.height, s.width) for s in samples})} sizes"
        run = open_run(given.folder, given.folder.name, options, *given.fingerprints)
        world.wait()
    run = Run(given.folder, given.folder.name)
    plan = plan_of(given, samples)
    if world.first:
        write_text(run.plan_file, plan.page)
        yield plan.line
    placement = Placement(given.weights, plan.chosen.streamed, given.shard and world.size > 1)
    view = load_transformer(given.files.transformer, device, placement, world)
    extras = given.extras(plan.chosen, world)
    session = Session.start(view, samples, cache, empty, options, run, extras)
    try:
        with closing(train(session)) as steps:
            for step in steps:
                if options.sample_every and step.step % options.sample_every == 0 and world.first:
                    sample_grid(session, prompts, encoder.decode)
                if world.first and (step.validation is not None or step.note or step.step % 25 == 0):
                    yield describe(step)
    finally:
        if session.step and world.first:
            write_lora(run.lora_file, to_lora(session), given.layout)
            save_picture(run.folder / "curves.png", run_curves(run))
        leave()
    if world.first:
        yield f"{run.lora_file}: {session.step} steps"


def encode_all(given: Given, encoder: FileEncoder) -> list[Sample]:
    """Every sample of a training, encoded where the cache lacks it."""
    data, prior = given.options.data, given.options.objective.prior_weight > 0
    items = list(encode(given.dataset, encoder, data, given.cache, prior))
    if given.regularisation:
        items += list(encode_regularisation(given.regularisation, encoder, data, given.cache))
    return [item.sample for item in items]


def free_bytes(device: torch.device) -> int:
    """Bytes free on a device; on the CPU in RAM."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return psutil.virtual_memory().available


def describe(step: Step) -> str:
    text = f"step {step.step}/{step.total}  loss {step.loss:.4f}  {step.seconds:.2f} s"
    text = text if step.validation is None else f"{text}  validation {step.validation:.4f}"
    return f"{text}  ({step.note})" if step.note else text


def add_encode(parser: argparse.ArgumentParser) -> None:
    from ..cli import add_options

    parser.add_argument("dataset", type=Path, help="dataset file or folder")
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"), help="folder of latents and text states")
    add_model(parser)
    add_options(parser, DataOptions)


def run_encode(args) -> Iterator[str]:
    from ..cli import read_options

    cache, encoder = Cache(args.cache), FileEncoder(model_files(args), device_of(args))
    items = list(encode(record_at(args.dataset), encoder, read_options(DataOptions, args), cache))
    made = sum(item.made for item in items)
    yield f"{args.cache}: {len(items)} pictures, {made} encoded now, {len(items) - made} were there"


def add_average(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("out", type=Path, help="LoRA file to write")
    parser.add_argument("--last", type=int, default=3, help="how many of the newest states")


def run_average(args) -> Iterator[str]:
    from ..soup import average_states

    lora = average_states(Run(args.run, args.run.name), args.last)
    yield f"{write_lora(args.out, lora)}: the mean of {args.last} states at rank {lora.rank}"


def add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("lora", type=Path, help="LoRA file that was trained with this pack")


def run_settings(args) -> Iterator[str]:
    settings = settings_of(read_lora(args.lora).metadata, args.lora.name)
    yield to_toml(parse(TrainOptions, nest(TrainOptions, settings), args.lora.name))


COMMANDS = {
    "encode": ("Encode pictures and captions ahead of a training.", add_encode, run_encode),
    "average": ("Write the mean of a run's last states as one LoRA.", add_average, run_average),
    "settings": ("Print how a LoRA was trained, as TOML for --config.", add_settings, run_settings),
    "train": ("Train a LoRA; the same run folder goes on where it stopped.", add_train, run_train),
}
