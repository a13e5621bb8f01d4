"""Several LoRAs distilled into one, by training on what their sum does to the model."""

from dataclasses import dataclass, replace
from typing import Any

from comfy_api.latest import io, ui

from ..core.dataset.view import View
from ..core.files import digest_of, digest_tensors
from ..core.lora.record import Lora
from ..trainer.config import TrainOptions
from ..trainer.run import Run
from . import host, types
from .job import Job, Sources
from .merging import CATEGORY, read_weights
from .widgets import inputs_of
from .wire import from_wire, names_of, to_wire

FIRST = ("rank", "steps", "learning_rate", "resolution", "batch_size", "seed")


class DistilLoras(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        lora = io.Autogrow.TemplatePrefix(
            types.LoraModel.Input("lora", tooltip="A LoRA to learn."), prefix="lora", min=1, max=types.MOST_LORAS
        )
        return io.Schema(
            node_id="FluxAtelierDistilLoras",
            display_name="Distil LoRAs",
            category=CATEGORY,
            description="Train one LoRA of a chosen rank to do what several do together, from the best truncation on. "
            "Cancel keeps what is trained; the same name goes on.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input("model", tooltip="The Flux.1 model that the LoRAs are for; it is not changed."),
                io.Clip.Input("clip", tooltip="The CLIP."),
                io.Vae.Input("vae", tooltip="A Flux VAE."),
                types.Dataset.Input("dataset", tooltip="Pictures and captions on which the LoRAs are compared."),
                io.Autogrow.Input("loras", template=lora, tooltip="The LoRAs, in the order of the weights."),
                io.String.Input(
                    "weights",
                    default="1.0",
                    tooltip="Weight of each LoRA, separated by commas; the last one counts for all that follow.",
                ),
                io.String.Input(
                    "blocks",
                    default="",
                    multiline=True,
                    tooltip="Block weights, one line each: double.0-18 = 0.5 for every LoRA, lora0: single = 0 for the first.",
                ),
                io.String.Input(
                    "name",
                    default="distilled",
                    tooltip="Name of the LoRA and of its run folder; the same name goes on.",
                ),
                *inputs_of(TrainOptions, FIRST),
                types.Config.Input("options", optional=True, tooltip="More settings, from Training Options."),
            ],
            outputs=[
                types.LoraModel.Output(display_name="lora"),
                types.Run.Output(display_name="run"),
                io.AnyType.Output(display_name="lora name"),
            ],
        )

    @classmethod
    def validate_inputs(cls, name=None, weights=None, loras=None):
        named = host.told(host.lora_file, name)
        count = len(loras) if loras else types.MOST_LORAS
        return named if named is not True else host.told(read_weights, weights, count)

    @classmethod
    def execute(
        cls, model, clip, vae, dataset: View, loras: dict, weights: str, blocks: str, name: str,
        options: dict | None = None, **first,
    ) -> io.NodeOutput:  # fmt: skip
        import torch

        from ..trainer.distil import Lesson, errors_of

        name = name.strip()
        with torch.inference_mode(False):
            sockets = {socket: tensors for socket, tensors in loras.items() if tensors is not None}
            numbers = read_weights(weights, len(sockets))
            given = zip(names_of(sockets), numbers, sockets.values(), strict=True)
            parts = [(called, weight, from_wire(tensors, called)) for called, weight, tensors in given]
            lesson = Lesson(parts, blocks)
            chosen = lesson.options({**(options or {}), **first}, host.flux_shape(model), "Distil LoRAs")
            digests = [[digest_tensors(t), w] for t, w in zip(sockets.values(), numbers, strict=True)]
            sources = Taught(
                model, clip, vae, dataset.dataset(), lesson=lesson, digest=digest_of("distil", digests, blocks)
            )
            lora, run = DistilJob(sources, name, chosen, cls.hidden.unique_id).run()
            tensors = to_wire(replace(lora, metadata=lesson.header(lora.metadata, chosen)), name.strip())
        errors = errors_of(run, chosen.result)
        text = f"{run.lora_file}\n{errors.line() if errors else 'nothing is measured yet'}"
        return io.NodeOutput(tensors, run, host.lora_name_of(host.lora_file(name)), ui=ui.PreviewText(text))


@dataclass(frozen=True)
class Taught(Sources):
    """What comes in by wires, with the LoRAs that are learnt."""

    lesson: Any = None
    digest: str = ""

    def lora(self, name: str) -> Lora | None:
        """The student begins with the LoRAs' sum, truncated."""
        return self.lesson.sum if name == "start_from" else None

    @property
    def fingerprints(self) -> tuple[str, str, str]:
        pictures, model, _ = super().fingerprints
        return pictures, model, self.digest


class DistilJob(Job):
    """A training whose velocities come from LoRAs and not from the pictures."""

    def _extras(self, extras):
        from ..trainer.distil import LoraTeacher

        return replace(extras, teacher=LoraTeacher(self.sources.lesson.sum))

    def _keep(self, lora: Lora, run: Run) -> None:
        super()._keep(replace(lora, metadata=self.sources.lesson.header(lora.metadata, self.options)), run)


NODES = [DistilLoras]
