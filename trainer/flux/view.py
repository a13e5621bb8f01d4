"""A mirror of a loaded Flux model that can be trained without touching it.

The mirror has the model's module names but owns no weights: every Linear is a proxy whose autograd function asks for
the weight when it is needed, once in forward and once more in backward, and keeps nothing in between. So the model may
be bf16, fp8, GGUF or patched with LoRAs, may live in inference-mode tensors or partly in RAM, and stays byte for byte
what it was. How a weight is asked for comes in as a function; this file knows no ComfyUI.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.flux.layout import FluxShape
from .tree import FluxTree, Norm

Release = Callable[[], None]
Cast = Callable[[nn.Module, Tensor], tuple[Tensor, Tensor | None, Release]]


class FrozenLinear(torch.autograd.Function):
    """y = x W^T + b with a frozen W that is cast anew in backward; saves no tensor."""

    @staticmethod
    def forward(ctx, x: Tensor, source: nn.Module, cast: Cast) -> Tensor:
        ctx.source, ctx.cast = source, cast
        weight, bias, release = cast(source, x)
        out = F.linear(x, weight, bias)
        release()
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        weight, _, release = ctx.cast(ctx.source, grad)
        out = grad @ weight
        release()
        return out, None, None


class ProxyLinear(nn.Linear):
    """Looks like a Linear to peft, weighs four bytes, and computes with its source's weight."""

    def __init__(self, source: nn.Module, cast: Cast, width: int, out: int, device: torch.device):
        nn.Module.__init__(self)
        self.in_features, self.out_features = width, out
        # One zero seen as a whole matrix: peft reads its device, dtype and shape, and meta tensors would mislead it.
        weight = torch.zeros((), dtype=torch.float32, device=device).expand(out, width)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_parameter("bias", None)
        object.__setattr__(self, "source", source)  # not a submodule: the mirror owns nothing of the model
        object.__setattr__(self, "cast", cast)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        return FrozenLinear.apply(x, self.source, self.cast)


class TrainView(FluxTree):
    """The mirror of a Flux.1 transformer: call it like a FluxTree, inject adapters into it, throw it away after."""

    def __init__(self, model: nn.Module, shape: FluxShape, cast: Cast, device: torch.device):
        """Mirror a model.

        model   a module tree with the original names (ComfyUI's, or a FluxTree read from a file)
        shape   its sizes
        cast    (module, tensor like the input) -> weight, bias, release; both in the tensor's dtype and device
        device  where training happens
        """

        def linear(name: str, width: int, out: int) -> nn.Module:
            return ProxyLinear(model.get_submodule(name), cast, width, out, device)

        def norm(name: str) -> nn.Module:
            module = model.get_submodule(name)
            scale = module.scale if hasattr(module, "scale") else module.weight
            return Norm(scale.detach().to(device, torch.float32, copy=True))

        super().__init__(shape, linear, norm)
        self.requires_grad_(False)


def cast_plain(module: nn.Module, like: Tensor) -> tuple[Tensor, Tensor | None, Release]:
    """Ask a plain Linear of any float dtype for its weight; a `scale_weight` of scaled fp8 files is multiplied in."""
    weight = module.weight.to(like.device, like.dtype)
    if getattr(module, "scale_weight", None) is not None:
        weight = weight * module.scale_weight.to(like.device, like.dtype)
    bias = None if module.bias is None else module.bias.to(like.device, like.dtype)
    return weight, bias, _nothing


def _nothing() -> None:
    """Plain weights need no release."""
