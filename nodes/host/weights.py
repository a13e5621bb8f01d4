"""The weights of a MODEL one by one, with its patches and without, and the model files that ComfyUI lists."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import comfy.lora
import comfy.model_management as memory
import folder_paths
import torch
from torch import Tensor, nn

from ...core.errors import AtelierError
from ...core.flux.checkpoint import parameter_name
from ...core.tensor_stream import DTYPES
from .folders import inside, output_folder
from .model import cast

PREFIX = "diffusion_model."
FOLDERS = ("diffusion_models", "checkpoints")
ENDINGS = (".safetensors", ".sft", ".gguf")


class ModelWeights:
    """The transformer of a MODEL as named weights: dequantised, its patches added in float32 and never rounded."""

    def __init__(self, patcher, name: str):
        """Look at a MODEL.

        name  what to call it in errors
        Raises AtelierError if it is no Flux model, or carries a LoRA that its weights do not show.
        """
        self.name, self._patcher = name, patcher
        inner = patcher.model.diffusion_model
        if not hasattr(inner, "double_blocks"):
            raise AtelierError(f"{name} is {type(patcher.model).__name__}, not Flux. Load a Flux diffusion model.")
        if "bypass_lora" in patcher.injections:
            raise AtelierError(
                f"{name} carries a LoRA in bypass mode, which is not in its weights. Load that LoRA without bypass."
            )
        memory.unload_all_models()  # which takes patches out of the weights
        self._places = dict(_places(inner))
        self.shapes: Mapping[str, tuple[int, ...]] = {name: _shape(*place) for name, place in self._places.items()}
        self._last: tuple[str, Tensor] | None = None

    @property
    def precision(self) -> str:
        """How most of the values are kept."""
        module, own, _ = self._places[max(self.shapes, key=lambda name: torch.Size(self.shapes[name]).numel())]
        value = getattr(module, own)
        packed = getattr(getattr(value, "tensor_type", None), "name", None) or getattr(module, "quant_format", None)
        names = {dtype: name for name, dtype in DTYPES.items()}
        return str(packed) if packed else names.get(value.dtype, str(value.dtype))

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of a parameter in float32; the last parameter asked for is kept, for its other rows."""
        if self._last is None or self._last[0] != name:
            self._last = None
            with torch.inference_mode():
                value = self._value(name)
            self._last = name, value.clone()  # outside of inference mode, so that it is a tensor like any other
        return self._last[1][start:stop]

    def _value(self, name: str) -> Tensor:
        module, own, key = self._places[name]
        if hasattr(module, "out_features"):
            weight, bias, release = cast(module, torch.empty(0))
            value = (weight if own == "weight" else bias).to("cpu", torch.float32, copy=True)
            release()
        else:
            value = getattr(module, own).to("cpu", torch.float32, copy=True)
        patches = self._patcher.patches.get(key)
        return comfy.lora.calculate_weight(patches, value, key) if patches else value


def _places(inner: nn.Module) -> Iterator[tuple[str, tuple[nn.Module, str, str]]]:
    """Parameters by their original names: the module, its own name for them, and the key that patches have."""
    for module_name, module in inner.named_modules():
        for own, _ in module.named_parameters(recurse=False):
            name = f"{module_name}.{own}"
            yield parameter_name(name), (module, own, PREFIX + name)


def _shape(module: nn.Module, own: str, key: str) -> tuple[int, ...]:
    """A parameter's sizes; packed weights say theirs through the layer."""
    if own == "weight" and hasattr(module, "out_features"):
        return module.out_features, module.in_features  # type: ignore[return-value]
    return tuple(getattr(module, own).shape)


def checkpoint_names() -> list[str]:
    """The model files that can be read here: safetensors and GGUF, of ComfyUI's diffusion models and checkpoints."""
    found: dict[str, None] = {}
    for kind in FOLDERS:
        for folder in folder_paths.get_folder_paths(kind):
            files, _ = folder_paths.recursive_search(folder, excluded_dir_names=[".git"])
            found |= dict.fromkeys(sorted(f for f in files if f.lower().endswith(ENDINGS)))
    return list(found)


def checkpoint_path(name: str) -> Path:
    """Where a model file of that list lies; raises AtelierError if it is gone."""
    for kind in FOLDERS:
        for folder in map(Path, folder_paths.get_folder_paths(kind)):
            if (folder / name).is_file():
                return inside(folder, name)
    raise AtelierError(f"There is no model file {name} in ComfyUI's folders. Choose one of the list.")


def checkpoint_file(name: str, source: str = "") -> Path:
    """Where a model file goes: output/diffusion_models, or output/checkpoints for what was made of a checkpoint.

    source  the file of the list it is made of
    Raises AtelierError for a name that is empty or leads out of the folder.
    """
    if not name.strip(" ."):
        raise AtelierError(f"The name is {name!r}. Give the model a name.")
    whole = any((Path(folder) / source).is_file() for folder in folder_paths.get_folder_paths("checkpoints"))
    return inside(output_folder(FOLDERS[1] if source and whole else FOLDERS[0]), f"{name.strip()}.safetensors")


def checkpoint_name_of(path: Path) -> str:
    """The name of a file of checkpoint_file in ComfyUI's lists, folders below its own included."""
    return next(str(path.relative_to(f)) for f in map(output_folder, FOLDERS) if path.is_relative_to(f))
