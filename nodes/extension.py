"""The list of nodes that ComfyUI asks for."""

from comfy_api.latest import ComfyExtension, io

from . import (
    analysis,
    block_weights,
    checkpoints,
    datasets,
    distil,
    evaluation,
    frames,
    lora_grid,
    lora_parts,
    loras,
    merging,
    nano,
    panel,
    rank,
    registry,
    runs,
    style,
    training,
)  # fmt: skip


class FluxAtelier(ComfyExtension):
    """Every node of the pack, on every machine."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        panel.register()
        training_shelves = (nano, datasets, training, runs)
        lora_shelves = (
            loras,
            merging,
            block_weights,
            rank,
            checkpoints,
            distil,
            analysis,
            lora_parts,
            registry,
            lora_grid,
        )
        shelves = (*training_shelves, *lora_shelves, evaluation, style, frames)
        return [node for shelf in shelves for node in shelf.NODES]


async def comfy_entrypoint() -> FluxAtelier:
    return FluxAtelier()
