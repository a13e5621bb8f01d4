"""A LoRA in memory, whatever file it came from."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from .kinds import Layer

Layout = Literal[
    "kohya", "comfy", "core", "diffusers", "diffusers_alpha", "onetrainer", "lycoris", "bare", "peft", "bfl", "xlabs"
]  # fmt: skip
Base = Literal["flux1", "flux2", "sdxl", "sd3"]


@dataclass(frozen=True)
class Lora:
    """A LoRA: what it changes in each layer, with the header's metadata.

    modules   layers by the original module name ("double_blocks.0.img_attn.qkv"); those of text encoders begin with
              clip_l., clip_g. or t5xxl. It may be a Layers, which makes each layer when it is asked for.
    layout    of the file's keys
    unknown   keys that mean nothing here; they are told, never dropped in silence
    vectors   changes of biases and norms, added to them, by the parameter's original name ("img_in.bias")
    base      the kind of model it changes
    """

    modules: Mapping[str, Layer]
    layout: Layout
    metadata: dict[str, str] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    vectors: Mapping[str, Tensor] = field(default_factory=dict)
    base: Base = "flux1"

    @property
    def rank(self) -> int:
        """The highest rank of any layer."""
        return max((layer.rank for layer in self.modules.values()), default=0)


class Layers(Mapping[str, Layer]):
    """Layers by name that are made when asked for and not kept, so that a file's size is not the memory's."""

    def __init__(self, makers: Mapping[str, Callable[[], Layer]]):
        self._makers = dict(makers)

    def __getitem__(self, name: str) -> Layer:
        return self._makers[name]()

    def __contains__(self, name: object) -> bool:
        return name in self._makers  # Mapping's own would make the layer to see

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)
