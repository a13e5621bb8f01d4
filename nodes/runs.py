"""What is left of a training: its settings back out of a LoRA, the mean of its last states."""

import json

import torch
from comfy_api.latest import io, ui

from ..core.lora.formats import read_lora
from ..trainer.run import Run
from . import host, types
from .saving import save_lora
from .training import CATEGORY, FIRST
from .wire import to_wire

SHOWN = tuple(name for name in FIRST if name != "sample_every")
KINDS = {"learning_rate": io.Float, "alpha": io.Float, "trigger": io.String}


class LoadTrainingSettings(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierLoadTrainingSettings",
            display_name="Load Training Settings",
            category=CATEGORY,
            description="Read how a LoRA of this pack was trained, as inputs for Train LoRA.",
            is_output_node=True,
            inputs=[
                io.Combo.Input(
                    "lora_name", options=host.lora_names(), tooltip="A LoRA that was trained with this pack."
                )
            ],
            outputs=[
                types.Config.Output(display_name="options"),
                *(KINDS.get(name, io.Int).Output(display_name=name) for name in SHOWN),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_name):
        facts = host.lora_path(lora_name).stat()
        return facts.st_mtime_ns, facts.st_size

    @classmethod
    def execute(cls, lora_name: str) -> io.NodeOutput:
        from ..trainer.export import settings_of

        metadata = read_lora(host.lora_path(lora_name)).metadata
        settings = settings_of(metadata, lora_name)
        told = [f"{name}: {settings[name]}" for name in SHOWN]
        told.append(f"losses: {json.dumps(json.loads(metadata.get('flux_atelier.losses', '{}')))}")
        options = {k: v for k, v in settings.items() if k not in FIRST}
        return io.NodeOutput(options, *(settings[name] for name in SHOWN), ui=ui.PreviewText("\n".join(told)))


class AverageStates(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierAverageStates",
            display_name="Average States",
            category=CATEGORY,
            description="The exact mean of a run's last saved states as one LoRA; often steadier than the last alone.",
            is_output_node=True,
            inputs=[
                types.Run.Input("run", tooltip="A run, from Train LoRA."),
                io.Int.Input("last", default=3, min=2, max=1000, tooltip="How many of the newest states."),
                io.String.Input("name", default="averaged", tooltip="Name of the file in output/loras."),
            ],
            outputs=[types.LoraModel.Output(display_name="lora"), io.AnyType.Output(display_name="lora name")],
        )

    @classmethod
    def validate_inputs(cls, name=None):
        return host.told(host.lora_file, name)

    @classmethod
    def execute(cls, run: Run, last: int, name: str) -> io.NodeOutput:
        from ..trainer.soup import average_states

        with torch.inference_mode(False):
            lora = average_states(run, last)
            path, tensors = save_lora(name, lora), to_wire(lora, name.strip())
        text = f"{path}\n{lora.metadata['flux_atelier.recipe']}"
        return io.NodeOutput(tensors, host.lora_name_of(path), ui=ui.PreviewText(text))


NODES = [LoadTrainingSettings, AverageStates]
