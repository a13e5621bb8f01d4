"""A mirror of a loaded Flux model that can be trained without touching it.

The mirror has the model's module names but owns no weights: every Linear is a proxy whose autograd function asks for
the weight when it is needed, once in forward and once more in backward, and keeps nothing in between. So the model may
be bf16, fp8, GGUF or patched with LoRAs, may live in inference-mode tensors or partly in RAM, and stays byte for byte
what it was. How a weight is asked for comes in as a function; this file knows no ComfyUI.
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.errors import AtelierError
from ...core.flux.layout import FluxShape
from ...core.lora.factors import Factors
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
        self.assistant: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        out = FrozenLinear.apply(x, self.source, self.cast)
        if self.assistant is None:
            return out
        down, up = self.assistant
        return out + F.linear(F.linear(x, down.to(x.dtype)), up.to(x.dtype))


def fitting_layer(tree: nn.Module, name: str, factors: Factors) -> nn.Linear:
    """The layer of a tree that a LoRA's factors belong to.

    Raises AtelierError if the tree has no such layer, or it has another size.
    """
    try:
        layer = tree.get_submodule(name)
    except AttributeError:
        raise AtelierError(f"The LoRA has a layer {name} that the model lacks. Choose a LoRA for this model.") from None
    size = factors.up.shape[0], factors.down.shape[1]
    if size != (layer.out_features, layer.in_features):
        raise AtelierError(
            f"The LoRA's {name} is {size[0]} x {size[1]}, the model's {layer.out_features} x {layer.in_features}. "
            "Choose a LoRA for this model."
        )
    return layer


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
            if hasattr(module, "scale"):
                return Norm(module.scale.detach().to(device, torch.float32, copy=True))
            scale, _, release = cast(module, torch.zeros(0, device=device))  # patches of a norm come along
            # ComfyUI-GGUF's own tensor class would go from here into every activation.
            scale = scale.detach().as_subclass(Tensor).to(device, torch.float32, copy=True)
            release()
            return Norm(scale)

        super().__init__(shape, linear, norm)
        self.requires_grad_(False)

    def assist(self, factors: Mapping[str, Factors]) -> None:
        """Lay a frozen LoRA under everything that is trained, such as schnell's training adapter; {} takes it away.

        Raises AtelierError if it does not fit the model.
        """
        for name, given in factors.items():
            fitting_layer(self, name, given)
        for name, module in self.named_modules():
            name = name.removesuffix(".base_layer")  # peft wraps a layer that carries an adapter
            if not isinstance(module, ProxyLinear):
                continue
            if name in factors:
                folded, device = factors[name].folded(), module.weight.device
                module.assistant = folded.down.to(device), folded.up.to(device)
            else:
                module.assistant = None


def cast_plain(module: nn.Module, like: Tensor, non_blocking: bool = False) -> tuple[Tensor, Tensor | None, Release]:
    """Ask a plain Linear for its weight: any float dtype, with a `scale_weight` of scaled fp8 files multiplied in.

    A module that packs its weight in another way says so by an `unpack` method of its own.
    """
    if hasattr(module, "unpack"):
        weight = module.unpack(like)
    else:
        weight = module.weight.to(like.device, like.dtype, non_blocking=non_blocking)
    if getattr(module, "scale_weight", None) is not None:
        weight = weight * module.scale_weight.to(like.device, like.dtype, non_blocking=non_blocking)
    bias = None if module.bias is None else module.bias.to(like.device, like.dtype, non_blocking=non_blocking)
    return weight, bias, _nothing


def _nothing() -> None:
    """Plain weights need no release."""
