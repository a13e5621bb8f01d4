"""Training a LoRA on the graph's own MODEL, with its CLIP and VAE."""

import torch
from comfy_api.latest import io, ui

from ..core.dataset.view import View
from ..core.errors import AtelierError
from ..core.images import to_image
from ..core.options import leaves, nest, parse
from ..trainer.config import DataOptions, TrainOptions
from ..trainer.memory import plan_run
from ..trainer.run import Run
from . import host, types
from .job import Job, Sources, encode_dataset, open_cache
from .widgets import inputs_of
from .wire import to_wire

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
            inputs=inputs_of(TrainOptions, REST, optional=True),
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
    def execute(cls, model, clip, vae, dataset: View, **data) -> io.NodeOutput:
        options = parse(DataOptions, data, "Encode Dataset")
        host.flux_shape(model)
        with torch.inference_mode(False):
            sources = Sources(model, clip, vae, dataset.dataset())
            samples = encode_dataset(sources, options, open_cache(), cls.hidden.unique_id)
        sizes = sorted({f"{s.width * 8} x {s.height * 8}" for s in samples})
        return io.NodeOutput(dataset, ui=ui.PreviewText(f"{len(samples)} pictures encoded at {', '.join(sizes)}"))


class TrainingPlan(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierTrainingPlan",
            display_name="Training Plan",
            category=CATEGORY,
            description="What a training would need, setting by setting, before anything is trained: memory, time, file size.",
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The Flux.1 model to train on."),
                *inputs_of(TrainOptions, ("steps", "rank", "alpha", "resolution", "batch_size")),
                types.Config.Input("options", optional=True, tooltip="More settings, from Training Options."),
            ],
            outputs=[io.String.Output(display_name="plan")],
        )

    @classmethod
    def execute(cls, model, options: dict | None = None, **first) -> io.NodeOutput:
        chosen = parse(TrainOptions, nest(TrainOptions, {**(options or {}), **first}), "Training Plan")
        shape = host.flux_shape(model)
        with torch.inference_mode(False):
            free, weights = host.make_room(model)
            plan = plan_run(shape, weights, [], chosen, host.training_device(), free)
        return io.NodeOutput(plan.text, ui=ui.PreviewText(plan.text))


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
                types.Dataset.Input(
                    "regularisation", optional=True, tooltip="Pictures of the class that keep the model what it is."
                ),
                types.LoraModel.Input(
                    "start_from", optional=True, tooltip="A LoRA to go on from, in any layout and with any alpha."
                ),
                types.LoraModel.Input(
                    "training_adapter",
                    optional=True,
                    tooltip="A LoRA that lies under the training and not in the result, such as schnell's.",
                ),
            ],
            outputs=[
                types.LoraModel.Output(display_name="lora"),
                types.LossMap.Output(display_name="loss"),
                types.Run.Output(display_name="run"),
                io.AnyType.Output(display_name="lora name"),
            ],
        )

    @classmethod
    def validate_inputs(cls, name=None):
        return host.told(host.lora_file, name)

    @classmethod
    def execute(
        cls, model, clip, vae, dataset: View, name: str, options: dict | None = None,
        regularisation: View | None = None, start_from: dict | None = None, training_adapter: dict | None = None,
        **first,
    ) -> io.NodeOutput:  # fmt: skip
        values = nest(TrainOptions, {**(options or {}), **first})
        other = regularisation.dataset() if regularisation else None
        sources = Sources(model, clip, vae, dataset.dataset(), other, start_from, training_adapter)
        job = Job(sources, name.strip(), parse(TrainOptions, values, "Train LoRA"), cls.hidden.unique_id)
        lora, run = job.run()
        records = run.metrics()
        text = str(run.folder)
        if records:
            text = f"{run.lora_file}\nloss {records[-1]['loss']:.4f} after {records[-1]['step']} steps"
        loss = {"loss": [r["loss"] for r in records]}
        return io.NodeOutput(
            to_wire(lora, name.strip()),
            loss,
            run,
            host.lora_name_of(host.lora_file(name.strip())),
            ui=ui.PreviewText(text),
        )


class RunCurves(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierRunCurves",
            display_name="Run Curves",
            category=CATEGORY,
            description="Draw a run's loss, its running mean and the validation loss, also by noise level.",
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


NODES = [TrainingOptions, EncodeDataset, TrainingPlan, TrainLora, RunCurves]
