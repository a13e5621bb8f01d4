"""LoRA files: load and merge, exactly."""

import torch
from comfy_api.latest import io, ui

from ..core.errors import AtelierError
from ..core.lora.formats import parse_lora, to_layout, write_lora
from ..core.lora.merge import merge
from . import host, types

CATEGORY = "Flux Atelier/LoRA"


class MergeLoras(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        lora = io.Autogrow.TemplatePrefix(
            types.LoraModel.Input("lora", tooltip="A LoRA to add."), prefix="lora", min=1, max=types.MOST_LORAS
        )
        return io.Schema(
            node_id="FluxAtelierMergeLoras",
            display_name="Merge LoRAs",
            category=CATEGORY,
            description="Add LoRAs up exactly: the weighted sum of what they do, not of their factors.",
            is_output_node=True,
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
                    max=1024,
                    tooltip="Rank of the result; 0 keeps the sum exact and adds the ranks.",
                ),
                io.String.Input("name", default="merged", tooltip="Name of the file in output/loras."),
            ],
            outputs=[types.LoraModel.Output(display_name="lora"), io.AnyType.Output(display_name="lora name")],
        )

    @classmethod
    def validate_inputs(cls, name, weights, loras=None):
        named = host.told(host.lora_file, name)
        count = len(loras) if loras else types.MOST_LORAS
        return named if named is not True else host.told(read_weights, weights, count)

    @classmethod
    def execute(cls, loras: dict, weights: str, rank: int, name: str) -> io.NodeOutput:
        with torch.inference_mode(False):
            numbers = read_weights(weights, len(loras))
            parts = [
                (socket, weight, parse_lora(tensors, {}, socket))
                for (socket, tensors), weight in zip(loras.items(), numbers, strict=True)
            ]
            merged = merge(parts, rank)
            path = write_lora(host.lora_file(name.strip()), merged.lora)
            tensors = to_layout(merged.lora, "kohya", torch.float32)
        left_out = sum(len(lora.unknown) for _, _, lora in parts)
        told = f"\n{left_out} tensors that are no Flux layer were left out" if left_out else ""
        text = f"{path}\n{len(parts)} LoRAs, rank {merged.lora.rank}, {merged.kept:.2%} of the sum's energy kept{told}"
        return io.NodeOutput(tensors, path.name, ui=ui.PreviewText(text))


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
        raise AtelierError(f"There are {len(numbers)} weights for {count} LoRAs. Give one weight for each LoRA.")
    return numbers + numbers[-1:] * (count - len(numbers))


NODES = [MergeLoras]
