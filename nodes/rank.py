"""Smaller LoRA files: lower ranks, fewer layers, fewer bits, each with what it costs."""

from typing import NamedTuple, cast

import torch
from comfy_api.latest import io, ui

from ..core.errors import AtelierError
from ..core.lora.budget import Budget, norms_of, resize_to_size
from ..core.lora.prune import Pruning, prune
from ..core.lora.quantise import STORAGES, Storage, quantise
from ..core.lora.record import Lora
from ..core.lora.resize import METHODS, Method, Resized, Rule, check_rule_text, parse_rules, resize
from . import host, types
from .host.weights import ModelWeights
from .saving import save_lora
from .wire import called, from_wire, to_wire

CATEGORY = "Flux Atelier/LoRA"
SIZE = "size"
MOST, HIGHEST = 100_000, 1024  # of amount, and of a layer's rank


class Made(NamedTuple):
    """What a node made, of what by which name, and in which precision its file is."""

    source: Lora
    parent: str
    lora: Lora
    dtype: torch.dtype


def outputs() -> list:
    return [
        types.LoraModel.Output(display_name="lora"),
        io.AnyType.Output(display_name="lora name"),
        io.String.Output(display_name="report"),
    ]


class ResizeLora(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierResizeLora",
            display_name="Resize LoRA",
            category=CATEGORY,
            description="Bring a LoRA to a lower rank, a share of its energy or a file size, and tell what is lost.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                types.LoraModel.Input("lora", tooltip="The LoRA to make smaller, of any layout."),
                io.Combo.Input(
                    "method",
                    options=[*METHODS, SIZE],
                    default="rank",
                    tooltip="What amount is: a rank; a share to keep of each layer's energy, norm (frobenius) or sum of "
                    "singular values (cumulative); the largest singular value by the smallest kept (ratio); or the "
                    "size of the file in MiB, spent over all layers.",
                ),
                io.Float.Input(
                    "amount",
                    default=16.0,
                    min=0.0,
                    max=float(MOST),
                    step=0.01,
                    tooltip="For rank a whole number, 16; for energy, frobenius and cumulative above 0 up to 1, 0.9; "
                    "for ratio 1 or more, 20; for size MiB, 100.",
                ),
                io.Int.Input(
                    "lowest_rank",
                    default=1,
                    min=0,
                    max=HIGHEST,
                    tooltip="Rank that every layer keeps in any case; 0, with size, lets whole layers go. Not with rank.",
                ),
                io.Int.Input(
                    "highest_rank",
                    default=0,
                    min=0,
                    max=HIGHEST,
                    tooltip="Rank that no layer goes above; 0 for no limit. Not with rank.",
                ),
                io.String.Input(
                    "rules",
                    default="",
                    multiline=True,
                    tooltip="For some layers, one a line, the last that fits wins: single.0-9: rank=4, "
                    "attention: energy=0.95 most=16, final_layer: keep, *.txt_mlp: drop.",
                ),
                io.String.Input("name", default="resized", tooltip="Name of the file in output/loras."),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="Only with size: the base model, so that changes count relative to the weights they change.",
                ),
            ],
            outputs=outputs(),
        )

    @classmethod
    def validate_inputs(cls, name=None, method=None, amount=None, lowest_rank=None, highest_rank=None, rules=""):
        checks = [(host.lora_file, name), (check_rule_text, rules)]
        if None not in (method, amount, lowest_rank, highest_rank):
            checks += [(_check_limits, amount, lowest_rank, highest_rank)]
            checks += [(_plan, method, amount, lowest_rank, highest_rank)]
        found = (host.told(*check) for check in checks)
        return next((told for told in found if told is not True), True)

    @classmethod
    def execute(
        cls, lora, method: str, amount: float, lowest_rank: int, highest_rank: int, rules: str, name: str, model=None
    ) -> io.NodeOutput:
        plan = _plan(method, amount, lowest_rank, highest_rank)
        if model is not None and isinstance(plan, Rule):
            raise AtelierError(f"The model counts only for the method size, not for {method}. Disconnect it.")
        with torch.inference_mode(False):
            source = from_wire(lora, called(lora, "lora"))
            chosen = parse_rules(rules, source.base)
            watch = host.Progress(len(source.modules), cls.hidden.unique_id).at
            if isinstance(plan, Rule):
                resized = resize(source, plan, chosen, watch)
            else:
                norm = None if model is None else norms_of(ModelWeights(model, "model"))
                budget = Budget(plan.mib, plan.least, plan.most, norm=norm)
                resized = resize_to_size(source, budget, chosen, watch)
            return _written(name, source, called(lora, "lora"), resized)


def _check_limits(amount: float, lowest: int, highest: int) -> None:
    """Raise AtelierError beyond the widgets' limits, which ComfyUI leaves to who looks at them beforehand."""
    for what, value, most in (
        ("amount", amount, MOST),
        ("lowest_rank", lowest, HIGHEST),
        ("highest_rank", highest, HIGHEST),
    ):
        if not value <= most:
            raise AtelierError(f"{what} is {value:g}, and the most is {most}. Choose less.")


def _plan(method: str, amount: float, lowest: int, highest: int) -> Rule | Budget:
    """The rule or the budget of the node's widgets; raises AtelierError for values that do not fit."""
    if method == "rank" and (lowest, highest) != (1, 0):
        raise AtelierError(
            "A fixed rank has limits besides. Set lowest_rank to 1 and highest_rank to 0, or choose another method."
        )
    return Budget(amount, lowest, highest) if method == SIZE else Rule(cast(Method, method), amount, lowest, highest)


def _written(name: str, source: Lora, parent: str, resized: Resized) -> io.NodeOutput:
    """A node's outputs for a LoRA of lower ranks: it in a file and on the wire, and what became of it."""
    made = Made(source, parent, resized.lora, torch.float16)
    return _output(name, made, resized.summary, resized.table)


def _output(name: str, made: Made, summary: str, table: str) -> io.NodeOutput:
    path = save_lora(name, made.lora, {made.parent: made.source}, dtype=made.dtype)
    head = f"{path}\n{path.stat().st_size / 2**20:.2f} MiB\n{summary}"
    text = f"{head}\n\n{table}"
    return io.NodeOutput(to_wire(made.lora, path.name), host.lora_name_of(path), text, ui=ui.PreviewText(head))


class PruneLora(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierPruneLora",
            display_name="Prune LoRA",
            category=CATEGORY,
            description="Leave out layers of a LoRA by name or for holding little, and its small singular directions.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                types.LoraModel.Input("lora", tooltip="The LoRA to prune, of any layout."),
                io.String.Input(
                    "layers",
                    default="",
                    multiline=True,
                    tooltip="Layers to drop, as in block weights, by commas or lines: double.0-3, *.txt_mlp, single.37.",
                ),
                io.Float.Input(
                    "share",
                    default=0.0,
                    min=0.0,
                    max=0.99,
                    step=0.001,
                    tooltip="Share of the LoRA's energy, 0 to 1, that may go with whole layers: the weakest are dropped.",
                ),
                io.Float.Input(
                    "threshold",
                    default=0.0,
                    min=0.0,
                    max=0.99,
                    step=0.001,
                    tooltip="Singular directions below this part, 0 to 1, of the largest of the whole LoRA are dropped.",
                ),
                io.String.Input("name", default="pruned", tooltip="Name of the file in output/loras."),
            ],
            outputs=outputs(),
        )

    @classmethod
    def validate_inputs(cls, name=None, layers=None, share=None, threshold=None):
        named = host.told(host.lora_file, name)
        return (
            named
            if named is not True or None in (layers, share, threshold)
            else host.told(Pruning, layers, share, threshold)
        )

    @classmethod
    def execute(cls, lora, layers: str, share: float, threshold: float, name: str) -> io.NodeOutput:
        pruning = Pruning(layers, share, threshold)
        with torch.inference_mode(False):
            source = from_wire(lora, called(lora, "lora"))
            watch = host.Progress(len(source.modules), cls.hidden.unique_id).at
            return _written(name, source, called(lora, "lora"), prune(source, pruning, watch))


class QuantiseLora(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierQuantiseLora",
            display_name="Quantise LoRA",
            category=CATEGORY,
            description="Store a LoRA in 16 or 8 bits so that ComfyUI loads it as it is, and tell the error.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                types.LoraModel.Input("lora", tooltip="The LoRA to store, of any layout."),
                io.Combo.Input(
                    "storage",
                    options=list(STORAGES),
                    default="bfloat16",
                    tooltip="What the factors are stored in: 16 bits (float16, bfloat16), or 8 (int8, about 1 % of error; "
                    "float8_e4m3fn, 2 to 4 %). alpha stays float32.",
                ),
                io.String.Input("name", default="quantised", tooltip="Name of the file in output/loras."),
            ],
            outputs=outputs(),
        )

    @classmethod
    def validate_inputs(cls, name=None):
        return host.told(host.lora_file, name)

    @classmethod
    def execute(cls, lora, storage: str, name: str) -> io.NodeOutput:
        with torch.inference_mode(False):
            source = from_wire(lora, called(lora, "lora"))
            watch = host.Progress(len(source.modules), cls.hidden.unique_id).at
            made = quantise(source, cast(Storage, storage), watch=watch)
            return _output(name, Made(source, called(lora, "lora"), made.lora, made.dtype), made.summary, made.table)


NODES = [ResizeLora, PruneLora, QuantiseLora]
