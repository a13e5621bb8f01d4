"""Different prompts and LoRAs for parts of one picture."""

import torch.nn.functional as F
from comfy_api.latest import io
from torch import Tensor

from ..core.counting import counted
from ..core.errors import AtelierError
from . import host, types
from .style import CATEGORY

MOST = 8  # regions


class RegionalPrompts(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        masks = io.Autogrow.TemplatePrefix(
            io.Mask.Input("mask", tooltip="White where the region is."), prefix="mask", min=1, max=MOST
        )
        loras = io.Autogrow.TemplatePrefix(
            types.LoraModel.Input("lora", tooltip="A LoRA for that region."), prefix="lora", min=0, max=MOST
        )
        return io.Schema(
            node_id="FluxAtelierRegionalPrompts",
            display_name="Regional Prompts",
            category=CATEGORY,
            description="A prompt, and perhaps a LoRA, for each of several masks; what no mask covers has a prompt of its own.",
            inputs=[
                io.Clip.Input("clip", tooltip="The CLIP."),
                io.Autogrow.Input("masks", template=masks, tooltip="The regions, in the order of their prompts."),
                io.Autogrow.Input("loras", template=loras, tooltip="lora0 is for mask0, and so on; leave a socket empty for none."),
                io.String.Input("prompts", default="", multiline=True, tooltip="One line for each mask."),
                io.String.Input("rest_prompt", default="", multiline=True, tooltip="What is where no mask is."),
                io.String.Input(
                    "strengths", default="1.0", tooltip="Strength of each region's LoRA, by commas; the last one counts for all that follow."
                ),
                io.Int.Input("feather", default=0, min=0, max=512, tooltip="Pixels over which a mask's edge is blended."),
                io.Float.Input("guidance", default=3.5, min=0.0, max=100.0, step=0.1, tooltip="Flux guidance."),
            ],
            outputs=[io.Conditioning.Output(display_name="conditioning")],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, strengths=None, masks=None, loras=None):  # noqa: ARG003
        return host.told(read_strengths, strengths, MOST)

    @classmethod
    def execute(cls, clip, masks, prompts, rest_prompt, strengths, feather, guidance, loras=None) -> io.NodeOutput:
        given = {name: mask for name, mask in masks.items() if mask is not None}
        lines = [line.strip() for line in prompts.splitlines() if line.strip()]
        if len(lines) != len(given):
            raise AtelierError(
                f"There are {counted(len(lines), 'prompt')} for {counted(len(given), 'mask')}. Write one line for each mask."
            )
        loras, numbers = loras or {}, read_strengths(strengths, MOST)
        refuse_unused(given, [name for name, lora in loras.items() if lora is not None])
        regions = []
        for (name, mask), line in zip(given.items(), lines, strict=True):
            number = int(name.removeprefix("mask"))
            lora = loras.get(f"lora{number}")
            regions.append(
                host.Region(soft(mask, feather), host.condition(clip, line, guidance), lora, numbers[number])
            )
        return io.NodeOutput(host.regional(host.condition(clip, rest_prompt, guidance), regions))


def refuse_unused(masks: dict[str, Tensor], loras: list[str]) -> None:
    """Refuse what no region would take: LoRAs without a mask, and further masks in one socket."""
    for name in loras:
        if f"mask{name.removeprefix('lora')}" not in masks:
            raise AtelierError(f"{name} has no mask. Connect mask{name.removeprefix('lora')}, or take the LoRA away.")
    for name, mask in masks.items():
        if mask.ndim == 3 and len(mask) > 1:
            raise AtelierError(
                f"There are {len(mask)} masks in {name}. Give each region one mask, in a socket of its own."
            )


def read_strengths(text: str, count: int) -> list[float]:
    """Numbers by commas, the last one for all that follow; raises AtelierError for what is no number."""
    parts = [part.strip() for part in text.split(",") if part.strip()] or ["1.0"]
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        raise AtelierError(f"The strengths {text!r} have no number. Write them as 1.0, 0.8.") from None
    if not all(abs(number) < 100 for number in numbers):
        raise AtelierError(f"The strengths {text!r} lead too far. Stay within -100 and 100.")
    return (numbers + [numbers[-1]] * count)[:count]


def soft(mask: Tensor, feather: int) -> Tensor:
    """The first mask of a batch [B, H, W] as [H, W], its edge blended over some pixels."""
    flat = (mask if mask.ndim == 2 else mask[0]).float().clamp(0, 1)
    if not feather:
        return flat
    side = min(2 * feather + 1, 2 * (min(flat.shape) // 2) - 1)
    half = side // 2
    padded = F.pad(flat[None, None], (half,) * 4, mode="replicate")
    return F.avg_pool2d(padded, side, stride=1)[0, 0] if side > 1 else flat


NODES = [RegionalPrompts]
