"""Training a LoRA on the graph's own MODEL, with its CLIP and VAE."""

import time
from contextlib import closing
from typing import Any

import torch
from comfy_api.latest import io, ui

from ..core.dataset.captions import training_captions
from ..core.dataset.record import Dataset
from ..core.errors import AtelierError
from ..core.images import save_picture, to_image, to_picture
from ..core.lora.formats import Lora, to_layout, write_lora
from ..core.options import leaves, nest, parse
from ..trainer.cache import Cache, Sample, encode, put_text
from ..trainer.config import DataOptions, TrainOptions
from ..trainer.memory import lora_parameters, training_bytes
from ..trainer.run import Run, open_run
from . import host, types
from .widgets import inputs_of

CATEGORY = "Flux Atelier/Training"
FIRST = ("steps", "learning_rate", "rank", "alpha", "resolution", "batch_size", "trigger", "seed", "sample_every")
REST = tuple(name for name in leaves(TrainOptions) if name not in FIRST)


class TrainingOptions(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierTrainingOptions",
            display_name="Training Options",
            category=CATEGORY,
            description="Everything about a training that Train LoRA does not show. Leave it out for the defaults.",
            inputs=inputs_of(TrainOptions, REST),
            outputs=[types.Config.Output(display_name="options")],
        )

    @classmethod
    def execute(cls, **options) -> io.NodeOutput:
        parse(TrainOptions, nest(TrainOptions, options), "Training Options")
        return io.NodeOutput(options)


class EncodeDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierEncodeDataset",
            display_name="Encode Dataset",
            category=CATEGORY,
            description="Encode pictures and captions ahead of a training, into the cache that Train LoRA reads.",
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input("model", tooltip="The Flux.1 model that will be trained on."),
                io.Clip.Input("clip", tooltip="The CLIP."),
                io.Vae.Input("vae", tooltip="A Flux VAE."),
                types.Dataset.Input("dataset", tooltip="The pictures and their captions."),
                *inputs_of(DataOptions, ("resolution", "buckets", "trigger")),
            ],
            outputs=[types.Dataset.Output(display_name="dataset")],
        )

    @classmethod
    def execute(cls, model, clip, vae, dataset: Dataset, **data) -> io.NodeOutput:
        options = parse(DataOptions, data, "Encode Dataset")
        host.flux_shape(model)
        with torch.inference_mode(False):
            samples = encode_all(
                dataset, host.GraphEncoder(model, clip, vae), options, open_cache(), cls.hidden.unique_id
            )
        sizes = sorted({f"{s.width * 8} x {s.height * 8}" for s in samples})
        return io.NodeOutput(dataset, ui=ui.PreviewText(f"{len(samples)} pictures encoded at {', '.join(sizes)}"))


def open_cache() -> Cache:
    """The cache that all trainings in ComfyUI share."""
    return Cache(host.output_folder("flux_atelier", "cache"))


def encode_all(dataset: Dataset, encoder, options: DataOptions, cache: Cache, node_id: str | None) -> list[Sample]:
    """Encode what the cache lacks, showing how far it is; a cancel loses nothing."""
    progress, samples = host.Progress(len(dataset.kept), node_id), []
    for item in encode(dataset, encoder, options, cache):
        samples.append(item.sample)
        progress.at(item.done)
        progress.tell({"phase": "encode", "step": item.done, "total": item.total})
    return samples


class TrainLora(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierTrainLora",
            display_name="Train LoRA",
            category=CATEGORY,
            description="Train a Flux.1 LoRA on the loaded model. Cancel keeps what is trained; the same name goes on.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input("model", tooltip="A Flux.1 model in any precision; it is not changed."),
                io.Clip.Input("clip", tooltip="The CLIP that the LoRA will be used with."),
                io.Vae.Input("vae", tooltip="A Flux VAE."),
                types.Dataset.Input("dataset", tooltip="The pictures and their captions."),
                io.String.Input(
                    "name", default="my-lora", tooltip="Name of the LoRA and of its run folder; the same name goes on."
                ),
                *inputs_of(TrainOptions, FIRST),
                types.Config.Input("options", optional=True, tooltip="More settings, from Training Options."),
            ],
            outputs=[
                types.LoraModel.Output(display_name="lora"),
                types.LossMap.Output(display_name="loss"),
                types.Run.Output(display_name="run"),
                io.AnyType.Output(display_name="lora name"),
            ],
        )

    @classmethod
    def validate_inputs(cls, name):
        return host.told(host.lora_file, name)

    @classmethod
    def execute(
        cls, model, clip, vae, dataset: Dataset, name: str, options: dict | None = None, **first
    ) -> io.NodeOutput:
        values = nest(TrainOptions, {**(options or {}), **first})
        job = Job(
            model, clip, vae, dataset, name.strip(), parse(TrainOptions, values, "Train LoRA"), cls.hidden.unique_id
        )
        lora, run = job.run()
        records = run.metrics()
        text = (
            f"{run.lora_file}\nloss {records[-1]['loss']:.4f} after {len(records)} steps"
            if records
            else str(run.folder)
        )
        tensors = to_layout(lora, "kohya", torch.float32)
        loss = {"loss": [r["loss"] for r in records]}
        return io.NodeOutput(tensors, loss, run, f"{name.strip()}.safetensors", ui=ui.PreviewText(text))


class Job:
    """One training in the graph: encode, then train, reporting each step and keeping the LoRA whatever happens."""

    def __init__(self, model, clip, vae, dataset: Dataset, name: str, options: TrainOptions, node_id: str | None):
        self.model, self.dataset, self.name, self.options, self.node_id = model, dataset, name, options, node_id
        self.target = host.lora_file(name)
        self.encoder = host.GraphEncoder(model, clip, vae)
        self.cache = open_cache()

    def run(self) -> tuple[Lora, Run]:
        host.flux_shape(self.model)  # a wrong model is told before anything is encoded
        fingerprint = host.fingerprint(self.model)
        folder = host.run_folder(self.name)
        with torch.inference_mode(False):
            samples = encode_all(self.dataset, self.encoder, self.options.data, self.cache, self.node_id)
            empty, _ = put_text("", self.encoder, self.cache)
            prompt = self.options.sample_prompt or self._first_caption()
            shown, _ = put_text(prompt, self.encoder, self.cache)
            run = open_run(folder, self.name, self.options, self.dataset.fingerprint, fingerprint)
        return self._train(samples, run, empty, shown), run

    def _first_caption(self) -> str:
        return training_captions(self.dataset.kept[0], self.options.data.trigger)[0]

    def _train(self, samples: list[Sample], run: Run, empty: str, shown: str) -> Lora:
        from ..trainer.export import to_lora
        from ..trainer.loop import Session, train

        progress = host.Progress(self.options.steps, self.node_id)
        with host.training(self.model, self._required(samples)) as view:
            session = Session.start(view, samples, self.cache, empty, self.options, run)
            session.check = host.check_cancel
            try:
                with closing(train(session)) as steps:
                    for step in steps:
                        progress.at(step.step, self._picture(session, shown, step.step))
                        progress.tell(self._event(step), now=step.step == step.total or step.validation is not None)
            finally:  # cancelled, out of memory or done: what is trained is a LoRA already
                lora = to_lora(view, self.options, session.step, len(session.samples))
                if session.step:
                    write_lora(run.lora_file, lora)
                    write_lora(self.target, lora)
            return lora

    def _required(self, samples: list[Sample]) -> int:
        shape, rank = host.flux_shape(self.model), self.options.adapter.rank
        return training_bytes(shape, lora_parameters(shape, rank), samples, self.options)

    def _event(self, step) -> dict[str, Any]:
        facts = {"phase": "train", "time": time.time(), "run": self.name}
        return facts | {k: v for k, v in vars(step).items() if v is not None}

    def _picture(self, session, shown: str, step: int):
        """A sample picture where one is due: the LoRA as it stands, from the same noise every time."""
        every = self.options.sample_every
        if not every or step % every:
            return None
        from ..trainer.preview import draw_sample

        picture = to_picture(self.encoder.decode(draw_sample(session, shown))[0])
        host.reload(self.model, self._required(session.samples))  # the VAE may have pushed some of it out
        save_picture(session.run.sample_file(step), picture)
        return picture


class RunCurves(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierRunCurves",
            display_name="Run Curves",
            category=CATEGORY,
            description="Draw a run's loss, its running mean and the validation loss.",
            is_output_node=True,
            inputs=[types.Run.Input("run", tooltip="A run, from Train LoRA.")],
            outputs=[io.Image.Output(display_name="curves")],
        )

    @classmethod
    def execute(cls, run: Run) -> io.NodeOutput:
        from ..trainer.report import run_curves

        if not run.metrics():
            raise AtelierError(f"The run {run.folder} has no steps yet. Train some first.")
        image = to_image(run_curves(run))
        return io.NodeOutput(image, ui=ui.PreviewImage(image, cls=cls))


NODES = [TrainingOptions, EncodeDataset, TrainLora, RunCurves]
