"""Linear weights that are kept small and unpacked when they are asked for: GGUF files, int8 and nf4, shards.

Each kind is somebody else's format and somebody else's kernel; what is ours is that a layer asks for its whole weight
in forward and again in backward, and keeps neither.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from ..core.errors import AtelierError
from ..core.flux import layout
from .flux.tree import FluxTree
from .world import World

Weights = Literal["file", "fp8", "int8", "nf4"]
FP8_MOST = 448.0  # the largest float8_e4m3fn
PACKAGES = {"int8": "torchao", "nf4": "bitsandbytes"}


class Packed(nn.Module):
    """A Linear whose weight is raw data and a way to unpack it; looks like one to the view."""

    def __init__(self, size: tuple[int, int], raw: Tensor, bias: Tensor | None, unpack: Callable[[Tensor], Tensor]):
        """Pack a layer.

        size    out and in features
        unpack  raw data on the device it is needed -> [out, in] in any float dtype
        """
        super().__init__()
        self.out_features, self.in_features = size
        self.weight = nn.Parameter(raw, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self._unpack = unpack

    def unpack(self, like: Tensor) -> Tensor:
        """The weight in a tensor's dtype and device, [out, in]."""
        return self._unpack(self.weight.to(like.device, non_blocking=True)).to(like.device, like.dtype)


def put(tree: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of another."""
    parent, _, child = name.rpartition(".")
    setattr(tree.get_submodule(parent), child, module)


def block_linears(tree: FluxTree) -> list[tuple[str, nn.Linear]]:
    """The layers that hold nearly all of a model's weight: the Linears of its blocks."""
    return [(n, m) for n, m in tree.named_modules() if "_blocks." in n and isinstance(m, nn.Linear)]


def quantise(tree: FluxTree, weights: Weights) -> None:
    """Keep a tree's block weights in fewer bits, in place, layer by layer.

    Raises AtelierError for a package that is missing.
    """
    if weights == "file":
        return
    pack = {"fp8": _pack_fp8, "int8": _pack_int8, "nf4": _pack_nf4}[weights]
    for name, module in block_linears(tree):
        if module.weight.element_size() == 1:
            raise AtelierError("The model's weights are 8 bit already. Leave --weights at file.")
        try:
            put(tree, name, pack(module))
        except ImportError as error:
            package = PACKAGES[weights]
            raise AtelierError(f"--weights {weights} needs {package} ({error}). Run: pip install {package}") from None


def _pack_fp8(module: nn.Linear) -> nn.Module:
    scale = (module.weight.float().abs().amax() / FP8_MOST).clamp(min=1e-12)
    raw = (module.weight.float() / scale).to(torch.float8_e4m3fn)
    return Packed(tuple(module.weight.shape), raw, module.bias, lambda raw: raw.to(scale.dtype) * scale.to(raw.device))


def _pack_int8(module: nn.Linear) -> nn.Module:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(module, Int8WeightOnlyConfig())
    return Packed((module.out_features, module.in_features), module.weight, module.bias, lambda raw: raw.dequantize())


def _pack_nf4(module: nn.Linear) -> nn.Module:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    raw, state = quantize_4bit(module.weight.data.contiguous(), quant_type="nf4")

    def unpack(raw: Tensor) -> Tensor:
        state.to(raw.device)
        return dequantize_4bit(raw, state)

    return Packed((module.out_features, module.in_features), raw, module.bias, unpack)


def read_gguf(path: Path) -> FluxTree:
    """Open a GGUF file of a Flux.1 transformer, its weights as they are packed in the file.

    Raises AtelierError if a package is missing, or the file is cut short or another model's.
    """
    try:
        import gguf
        from diffusers.quantizers.gguf.utils import GGUFParameter, dequantize_gguf_tensor
    except ImportError as error:
        raise AtelierError(
            f"GGUF files need the packages gguf and diffusers ({error}). Run: pip install gguf diffusers"
        ) from None
    try:
        tensors = gguf.GGUFReader(path).tensors
    except (ValueError, OSError, IndexError) as error:
        raise AtelierError(f"{path.name} is not a whole GGUF file ({error}). Download it again.") from None
    plain, packed = {}, {}
    for tensor in tensors:
        shape = tuple(int(n) for n in reversed(tensor.shape))
        raw = torch.from_numpy(tensor.data.copy())
        kinds = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
        if tensor.tensor_type.name in kinds:
            plain[tensor.name] = raw.view(kinds[tensor.tensor_type.name]).view(shape)
        else:
            packed[tensor.name] = raw, tensor.tensor_type, shape
    known = layout.bare(plain | {k: torch.empty(v[2], device="meta") for k, v in packed.items()})
    prefix = next((p for p in layout.PREFIXES if any(k.startswith(p) for k in (*plain, *packed))), "")
    with torch.device("meta"):
        tree = FluxTree(layout.shape_of(known))
    for key, (raw, kind, shape) in packed.items():
        name = key.removeprefix(prefix).removesuffix(".weight")

        def unpack(raw: Tensor, kind=kind) -> Tensor:
            return dequantize_gguf_tensor(GGUFParameter(raw, quant_type=kind))

        put(tree, name, Packed((shape[0], shape[1]), raw, known.get(f"{name}.bias"), unpack))
    rest = {k.replace("_norm.weight", "_norm.scale"): v for k, v in known.items() if v.device.type != "meta"}
    for name, module in tree.named_modules():
        if isinstance(module, Packed):
            rest[f"{name}.weight"] = module.weight
    missing, unexpected = tree.load_state_dict(rest, strict=False, assign=True)
    if missing or unexpected:
        problem = f"has no {missing[0]}" if missing else f"has {unexpected[0]}, which is not known"
        raise AtelierError(f"{path.name} {problem}. Choose a Flux.1 diffusion model file.")
    return tree.requires_grad_(False)


def shard(tree: FluxTree, device: torch.device, world: World) -> None:
    """Leave every process a part of each block weight, in place; a layer is gathered when it is asked for.

    For bases that fit no single card. The parts are torch's DTensors, sharded by rows.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh(device.type, (world.size,))
    for name, module in block_linears(tree):
        dtype = module.weight.dtype
        raw = module.weight.data.view(torch.uint8) if module.weight.element_size() == 1 else module.weight.data
        parts = distribute_tensor(raw.to(device), mesh, [Shard(0)])

        def unpack(raw, dtype=dtype) -> Tensor:
            return raw.full_tensor().view(dtype)

        packed = Packed((module.out_features, module.in_features), parts, module.bias, unpack)
        if getattr(module, "scale_weight", None) is not None:
            packed.register_buffer("scale_weight", module.scale_weight)
        put(tree, name, packed)
