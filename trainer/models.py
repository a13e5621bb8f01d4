"""Opening a person's Flux.1 files without ComfyUI: transformer, VAE and text encoders, offline.

`ModelFiles` names the four parts; `nano()` is the embedded set, `from_folder` a folder saved by diffusers. A
transformer may also be a single file in the original layout.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..core.errors import AtelierError
from ..core.files import digest, read_tensors, tensor_sizes
from ..core.flux import layout
from .flux.stream import place
from .flux.tree import FluxTree
from .flux.view import TrainView
from .nano import files as nano_files
from .packed import Weights, quantise, read_gguf, shard
from .world import ALONE, World

FLUX_VAE = {
    "in_channels": 3, "out_channels": 3, "latent_channels": 16, "layers_per_block": 2,
    "block_out_channels": (128, 256, 512, 512), "norm_num_groups": 32, "sample_size": 1024,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
    "use_quant_conv": False, "use_post_quant_conv": False, "scaling_factor": 0.3611, "shift_factor": 0.1159,
}  # fmt: skip


@dataclass(frozen=True)
class ModelFiles:
    """The parts of a Flux.1 model on disk, and how many tokens T5 pads to."""

    transformer: Path
    vae: Path
    clip: Path
    clip_tokenizer: Path
    t5: Path
    t5_tokenizer: Path
    t5_length: int = 256

    @property
    def fingerprint(self) -> str:
        file = self.transformer
        if file.is_dir():
            file = sorted(file.glob("*.safetensors"))[0]
        return digest(file)


def nano() -> ModelFiles:
    """The embedded nano-flux."""
    return ModelFiles(
        nano_files.TRANSFORMER, nano_files.VAE, nano_files.CLIP, nano_files.CLIP, nano_files.T5, nano_files.T5,
        nano_files.T5_LENGTH,
    )  # fmt: skip


def from_folder(folder: Path, transformer: Path | None = None) -> ModelFiles:
    """A folder saved by diffusers' FluxPipeline, or another transformer with that folder's VAE and text encoders.

    Raises AtelierError that names the part that is missing.
    """
    names = ("transformer", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    parts = {name: Path(folder) / name for name in names}
    if transformer:
        parts["transformer"] = Path(transformer)
    for name, path in parts.items():
        if not path.exists():
            raise AtelierError(f"{folder} has no {name}. Give a folder saved by diffusers' FluxPipeline.")
    return ModelFiles(*parts.values())


@dataclass(frozen=True)
class Placement:
    """How a model's weights are held: packed, partly in RAM, or dealt out to several processes."""

    weights: Weights = "file"
    streamed: float = 0.0
    shard: bool = False


AS_IN_FILE = Placement()


def load_transformer(
    path: Path, device: torch.device, placement: Placement = AS_IN_FILE, world: World = ALONE
) -> TrainView:
    """Open a Flux.1 transformer for training: a single file, GGUF too, or a diffusers folder.

    Raises AtelierError that says what the file is if it is no Flux.1 transformer.
    """
    tree = read_gguf(path) if path.suffix.lower() == ".gguf" else load_tree(path)
    quantise(tree, placement.weights)
    if placement.shard:
        shard(tree, device, world)
    cast = place(tree, device, 0.0 if placement.shard else placement.streamed)
    return TrainView(tree, tree.shape, cast, device)


def weight_bytes(path: Path) -> int:
    """Bytes of a transformer's weights on disk."""
    files = path.glob("*.safetensors") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)


def shape_in(path: Path) -> layout.FluxShape:
    """A transformer's sizes, read from its header only.

    Raises AtelierError that says what the file is if it is no Flux.1 transformer.
    """
    if path.suffix.lower() == ".gguf":
        return read_gguf(path).shape
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    known = {name: torch.empty(size, device="meta") for file in files for name, size in tensor_sizes(file).items()}
    if "x_embedder.weight" in known:
        return layout.shape_of_diffusers(known)
    return layout.shape_of(layout.bare(known))


def load_tree(path: Path) -> FluxTree:
    """Open a Flux.1 transformer as a frozen FluxTree with the file's own precision, on the CPU."""
    state = read_transformer(path)
    shape = layout.shape_of(state)
    with torch.device("meta"):
        tree = FluxTree(shape)
    scales = {k.removesuffix(".scale_weight"): v for k, v in state.items() if k.endswith(".scale_weight")}
    plain = {
        _norm_name(k): v for k, v in state.items() if not k.endswith((".scale_weight", ".scale_input", "scaled_fp8"))
    }
    missing, unexpected = tree.load_state_dict(plain, strict=False, assign=True)
    odd = next((k for k in unexpected if "comfy_quant" in k or "weight_scale" in k), None)
    if odd:
        raise AtelierError(
            f"{path.name} is quantised in a way that only ComfyUI reads ({odd}). Train it with the node, or use its bf16 file."
        )
    if missing or unexpected:
        problem = f"has no {missing[0]}" if missing else f"has {unexpected[0]}, which is not known"
        raise AtelierError(f"{path.name} {problem}. Choose a Flux.1 diffusion model file in bf16, fp16, fp32 or fp8.")
    for name, scale in scales.items():
        tree.get_submodule(name).register_buffer("scale_weight", scale)
    return tree.requires_grad_(False)


def _norm_name(key: str) -> str:
    """ComfyUI saves the norms' `scale` as `weight`."""
    return key.replace("_norm.weight", "_norm.scale")


def read_transformer(path: Path) -> dict[str, Tensor]:
    """Read a transformer's tensors in the original layout, from a single file or a diffusers folder."""
    if path.is_dir():
        state: dict[str, Tensor] = {}
        for part in sorted(path.glob("*.safetensors")):
            state |= read_tensors(part)[0]
        return layout.to_original(state)
    if path.suffix.lower() == ".gguf":
        raise AtelierError(
            f"{path.name} is a GGUF file, which can be trained on but not drawn with here. Use its bf16 file."
        )
    state = layout.bare(read_tensors(path)[0])
    return layout.to_original(state) if "x_embedder.weight" in state else state


def load_vae(path: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Open a Flux VAE: a tiny one in TAESD's layout, the original single file, or a diffusers folder."""
    from diffusers import AutoencoderKL

    if path.is_dir():
        from diffusers import AutoencoderTiny

        kind = AutoencoderTiny if "AutoencoderTiny" in (path / "config.json").read_text() else AutoencoderKL
        return kind.from_pretrained(path, torch_dtype=dtype, local_files_only=True).eval()
    state, _ = read_tensors(path)
    if "taesd_decoder.1.weight" in state:
        return tiny_vae(state).to(dtype).eval()
    if "decoder.conv_in.weight" not in state:
        raise AtelierError(f"{path.name} is not a VAE. Choose a Flux VAE such as ae.safetensors.")
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    vae = AutoencoderKL(**FLUX_VAE)
    vae.load_state_dict(convert_ldm_vae_checkpoint(state, vae.config))
    return vae.to(dtype).eval()


def tiny_vae(state: dict[str, Tensor]) -> nn.Module:
    """diffusers' AutoencoderTiny from TAESD keys; ComfyUI's decoder counts its clamp as layer 0."""
    from diffusers import AutoencoderTiny

    renamed = {}
    for key, value in state.items():
        if key.startswith("taesd_"):
            part, index, rest = key.removeprefix("taesd_").split(".", 2)
            renamed[f"{part}.layers.{int(index) - (part == 'decoder')}.{rest}"] = value
    vae = AutoencoderTiny(latent_channels=16)
    vae.load_state_dict(renamed)
    return vae
