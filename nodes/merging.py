"""Merging LoRAs into one file, by what they do."""

from collections.abc import Callable, Sequence

import torch
from comfy_api.latest import io, ui

from ..core.counting import counted
from ..core.errors import AtelierError
from ..core.lora.merge import MergeOptions, check_block_weights, check_request, merge, summary
from ..core.options import parse
from . import host, types
from .saving import save_lora
from .widgets import inputs_of
from .wire import from_wire, names_of, to_wire

CATEGORY = "Flux Atelier/LoRA"
HIGHEST = 1024  # rank of the result
TITLE = "Merge LoRAs"
USUAL = MergeOptions()
NUMBERS = ("energy", "density", "t", "epsilon", "gamma", "seed")


class MergeLoras(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        lora = io.Autogrow.TemplatePrefix(
            types.LoraModel.Input("lora", tooltip="A LoRA to merge."), prefix="lora", min=1, max=types.MOST_LORAS
        )
        return io.Schema(
            node_id="FluxAtelierMergeLoras",
            display_name=TITLE,
            category=CATEGORY,
            description="Merge LoRAs by what they do, exactly: weighted sums, SLERP, TIES, DARE, DELLA and more.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Autogrow.Input("loras", template=lora, tooltip="The LoRAs, in the order of the weights."),
                io.String.Input(
                    "weights",
                    default="1.0",
                    tooltip="Weight of each LoRA, separated by commas; the last one counts for all that follow.",
                ),
                io.Int.Input(
                    "rank",
                    default=16,
                    min=0,
                    max=HIGHEST,
                    tooltip="Rank of the result; 0 keeps what is exact in factors, with at most the sum of the ranks.",
                ),
                io.String.Input("name", default="merged", tooltip="Name of the file in output/loras."),
                *inputs_of(MergeOptions, ("method",), optional=True),
                io.String.Input(
                    "block_weights",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip=MergeOptions.model_fields["block_weights"].description,
                ),
                *inputs_of(MergeOptions, NUMBERS, optional=True),
            ],
            outputs=[
                types.LoraModel.Output(display_name="lora"),
                io.AnyType.Output(display_name="lora name"),
                io.String.Output(display_name="report"),
            ],
        )

    @classmethod
    def validate_inputs(
        cls,
        name=None,
        weights=None,
        rank=16,
        loras=None,
        method=USUAL.method,
        energy=USUAL.energy,
        density=USUAL.density,
        t=USUAL.t,
        epsilon=USUAL.epsilon,
        gamma=USUAL.gamma,
        block_weights="",
    ):
        # The others are named by nobody here, so that ComfyUI goes on checking their limits.
        options = dict(method=method, energy=energy, density=density, t=t, epsilon=epsilon, gamma=gamma)
        sockets = list(loras or [f"lora{i}" for i in range(types.MOST_LORAS)])
        checks = [
            (host.lora_file, name),
            (check_rank, rank),
            (read_weights, weights, len(sockets)),
            (check_block_weights, block_weights, len(sockets)),
        ]
        if None not in options.values():  # a linked one comes as None, and only the run knows whether they fit
            checks.append((lambda given: parse(MergeOptions, given, TITLE), options))
            if loras and None not in (weights, rank):
                checks.append((lambda given: check_merge(sockets, weights, rank, given), options))
        found = (host.told(*check) for check in checks)
        return next((told for told in found if told is not True), True)

    @classmethod
    def execute(cls, loras: dict, weights: str, rank: int, name: str, **options) -> io.NodeOutput:
        chosen = parse(MergeOptions, options, TITLE)
        numbers = read_weights(weights, len(loras))
        with torch.inference_mode(False):
            parts = [
                (called, weight, from_wire(tensors, called))
                for called, tensors, weight in zip(names_of(loras), loras.values(), numbers, strict=True)
            ]
            merged = merge(parts, rank, chosen, bar(cls.hidden.unique_id))
            path = save_lora(name, merged.lora, {called: lora for called, _, lora in parts})
            tensors = to_wire(merged.lora, path.name)
        text = f"{path}\n{summary(parts, merged, chosen)}\n{merged.report()}"
        return io.NodeOutput(tensors, host.lora_name_of(path), text, ui=ui.PreviewText(text))


def check_rank(rank: int) -> None:
    """Raise AtelierError for a rank beyond the widget's limits, which ComfyUI leaves to who looks at it beforehand."""
    if not 0 <= rank <= HIGHEST:
        raise AtelierError(f"The rank is {rank}. Choose 0 to {HIGHEST}.")


def check_merge(sockets: Sequence[str], weights: str, rank: int, options: dict) -> None:
    """Raise AtelierError for a merge that cannot be, by the node's inputs."""
    numbers = read_weights(weights, len(sockets))
    check_request(list(zip(sockets, numbers, strict=True)), rank, parse(MergeOptions, options, TITLE))


def bar(node_id: str | None) -> Callable[[int, int], None]:
    """The node's bar as merge moves it; it notices a cancel."""
    bars: list[host.Progress] = []

    def moved(done: int, total: int) -> None:
        bars[:] = bars or [host.Progress(total, node_id)]
        bars[0].at(done)

    return moved


def read_weights(text: str, count: int) -> list[float]:
    """Numbers separated by commas, the last repeated up to `count`.

    Raises AtelierError for what is no number, or for more numbers than LoRAs.
    """
    numbers = []
    for word in text.replace(";", ",").split(","):
        try:
            numbers.append(float(word))
        except ValueError:
            raise AtelierError(
                f"The weights have {word.strip()!r}, which is no number. Write numbers like 1.0, 0.5."
            ) from None
    if len(numbers) > count:
        raise AtelierError(
            f"There are {len(numbers)} weights for {counted(count, 'LoRA')}. Give one weight for each LoRA."
        )
    return numbers + numbers[-1:] * (count - len(numbers))


NODES = [MergeLoras]
