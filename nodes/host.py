"""The only file that looks into ComfyUI: weights, encoders, sampling, progress, cancel, memory, folders."""

import gc
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import comfy.model_management as memory
import comfy.ops
import comfy.sample
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
import comfy.text_encoders.flux
import comfy.utils
import folder_paths
import torch
from PIL import Image
from torch import Tensor, nn

from ..core.errors import AtelierError
from ..core.files import digest_of
from ..core.flux.layout import FluxShape
from ..trainer.flux.view import Cast, Release, TrainView
from ..trainer.nano import files as nano_files

EVENT = "flux_atelier.step"
EVENT_SECONDS = 0.4  # at most so often a running node speaks to the browser


# --- folders ---------------------------------------------------------------------------------------------------------


def output_folder(*parts: str) -> Path:
    """A folder below ComfyUI's output folder; raises AtelierError for a name that leads out of it."""
    return inside(Path(folder_paths.get_output_directory()), *parts)


def temp_file(name: str) -> Path:
    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    return inside(folder, name)


def lora_file(name: str) -> Path:
    """Where a finished LoRA goes: output/loras, which ComfyUI's loaders list."""
    if not name.strip(" ."):
        raise AtelierError(f"The name is {name!r}. Give the LoRA a name.")
    return inside(output_folder("loras"), f"{name}.safetensors")


def run_folder(name: str) -> Path:
    """A run's folder: output/flux_atelier/runs/<name>."""
    return inside(output_folder("flux_atelier", "runs"), name)


def inside(root: Path, *parts: str) -> Path:
    """A path below a root; raises AtelierError if a part leads out of it."""
    root = root.resolve()
    path = root.joinpath(*parts).resolve()
    if path == root or not path.is_relative_to(root):
        raise AtelierError(f"The name {'/'.join(parts)!r} leads out of {root}. Use a plain name without .. or /.")
    return path


def told(check: Callable, value: object, *more: object) -> bool | str:
    """Run a check before the queue starts: True, or what is wrong; a linked value comes as None and waits.

    For validate_inputs, so that a typing error is told at once and not after an hour of training.
    """
    try:
        if value is not None:
            check(value, *more)
    except AtelierError as error:
        return str(error)
    return True


def picture_roots() -> list[Path]:
    """Folders that may hold pictures: ComfyUI's input, output and datasets."""
    roots = [Path(folder_paths.get_input_directory()), Path(folder_paths.get_output_directory())]
    if "datasets" in folder_paths.folder_names_and_paths:
        roots += [Path(p) for p in folder_paths.get_folder_paths("datasets")]
    return [r.resolve() for r in roots]


def picture_folder(name: str) -> Path:
    """Find a folder of pictures by its name below the roots, or by an absolute path inside one of them.

    Raises AtelierError that lists where it looked.
    """
    name = name.strip()
    if not name:
        raise AtelierError("The folder is empty. Give the name of a folder in ComfyUI's input folder.")
    roots = picture_roots()
    for root in roots:
        path = (root / name).resolve()
        if path.is_relative_to(root) and path.is_dir():
            return path
    places = ", ".join(str(r) for r in roots)
    raise AtelierError(
        f"There is no folder {name} below {places}. Put the pictures there, "
        "or add their folder under datasets: in extra_model_paths.yaml."
    )


def model_folders(kind: str) -> list[Path]:
    """The model folders of a kind, such as "rife"."""
    if kind in folder_paths.folder_names_and_paths:
        return [Path(p) for p in folder_paths.get_folder_paths(kind)]
    return [Path(folder_paths.models_dir) / kind]


# --- progress and cancel -----------------------------------------------------------------------------------------------


class Progress:
    """The running node's bar, previews and messages; every call notices a cancel."""

    def __init__(self, total: int, node_id: str | None):
        self.bar = comfy.utils.ProgressBar(total, node_id=node_id)
        self.total, self.node_id, self._spoke = total, node_id, 0.0

    def at(self, value: int, picture: Image.Image | None = None) -> None:
        """Move the bar, show a picture if there is one; raises ComfyUI's interrupt if the person cancelled."""
        check_cancel()
        preview = ("JPEG", picture, 512) if picture else None
        self.bar.update_absolute(value, self.total, preview)

    def tell(self, data: dict, now: bool = False) -> None:
        """Send an event to the browser, unless one was sent a moment ago."""
        if not now and time.monotonic() - self._spoke < EVENT_SECONDS:
            return
        self._spoke = time.monotonic()
        from server import PromptServer

        server = getattr(PromptServer, "instance", None)
        if server is not None:
            server.send_sync(EVENT, data | {"node": self.node_id}, server.client_id)


def check_cancel() -> None:
    memory.throw_exception_if_processing_interrupted()


# --- the model ---------------------------------------------------------------------------------------------------------


def flux_shape(model) -> FluxShape:
    """Read the sizes of the Flux.1 transformer in a MODEL.

    Raises AtelierError that names what it is otherwise.
    """
    inner = model.model.diffusion_model
    params = getattr(inner, "params", None)
    kind = type(model.model).__name__
    if params is None or not hasattr(inner, "double_blocks") or not hasattr(inner, "single_blocks"):
        raise AtelierError(f"The MODEL is {kind}, not Flux.1. Load a Flux.1 diffusion model.")
    for sign, what in (
        ("global_modulation", "Flux.2"),
        ("yak_mlp", "another Flux variant"),
        ("txt_norm", "a Flux variant"),
    ):
        if getattr(params, sign, False):
            raise AtelierError(f"The MODEL is {what} ({kind}), not Flux.1. Load a Flux.1 diffusion model.")
    if getattr(inner, "vector_in", None) is None or params.hidden_size // params.num_heads != 128:
        raise AtelierError(f"The MODEL is a Flux variant ({kind}) that is not Flux.1. Load a Flux.1 diffusion model.")
    channels = inner.img_in.in_features
    if channels != 64:
        raise AtelierError(
            f"The MODEL takes {channels} input channels (Fill, Canny or Depth), not 64. Train on a Flux.1 base model."
        )
    return FluxShape(
        hidden=params.hidden_size, double=len(inner.double_blocks), single=len(inner.single_blocks), channels=channels,
        context=params.context_in_dim, pooled=params.vec_in_dim, guidance=bool(params.guidance_embed),
        mlp=int(params.hidden_size * params.mlp_ratio),
    )  # fmt: skip


def cast(module: nn.Module, like: Tensor) -> tuple[Tensor, Tensor | None, Release]:
    """Ask a ComfyUI layer of any kind for its weight in a tensor's dtype and device."""
    if hasattr(module, "cast_bias_weight"):  # ComfyUI-GGUF dequantises in its own method
        weight, bias = module.cast_bias_weight(like)[:2]
        return weight, bias, lambda: None
    weight, bias, stream = comfy.ops.cast_bias_weight(module, like, offloadable=True)
    return weight, bias, lambda: comfy.ops.uncast_bias_weight(module, weight, bias, stream)


CAST: Cast = cast


@contextmanager
def training(model, required: int = 0) -> Iterator[TrainView]:
    """Load a MODEL and mirror it for training, with autograd on; memory is given back on the way out.

    required  bytes on the device that the training itself will need; ComfyUI keeps weights in RAM to leave them free

    ComfyUI runs nodes in inference mode, whose tensors cannot be trained on; inside this context tensors are normal.
    """
    shape = flux_shape(model)
    memory.unload_all_models()
    memory.soft_empty_cache()
    with torch.inference_mode(False), torch.enable_grad():
        reload(model, required)
        view = TrainView(model.model.diffusion_model, shape, CAST, memory.get_torch_device())
        try:
            yield view
        finally:
            del view
            gc.collect()
            memory.soft_empty_cache()


def reload(model, required: int = 0) -> None:
    """Bring a MODEL to where it is computed, leaving so many bytes free beside it."""
    # Quantised weights are made in inference mode and cannot be moved outside it.
    with torch.inference_mode():
        memory.load_models_gpu([model], memory_required=required)


def fingerprint(patcher, *more: object) -> str:
    """A digest of a model's weights and patches by a few values of each tensor: the same weights, the same key.

    Weights count as they are without patches, whatever is loaded at the moment; patches count with their strengths.
    """
    facts = []
    for name, value in patcher.model.state_dict().items():
        kept = patcher.backup.get(name)
        facts.append([name, *some_values(kept.weight if kept else value)])
    for name, patches in sorted(patcher.patches.items()):
        facts += [[str(name), str(p[0]), str(p[2]), *some_values(p[1])] for p in patches]
    return digest_of(facts, [str(m) for m in more])


def some_values(value: object) -> list:
    """Shape and up to 16 values of a tensor; the same of every tensor inside an adapter or a tuple."""
    if isinstance(value, Tensor):
        flat = (torch.Tensor(value.data) if type(value.data) is not Tensor else value.data).flatten()
        picked = flat[:: max(1, flat.numel() // 16)][:16].float().cpu().tolist() if flat.numel() else []
        return [list(value.shape), picked]
    inner = getattr(value, "weights", value)
    if isinstance(inner, (tuple, list)):
        return [some_values(v) for v in inner]
    return [inner if isinstance(inner, (int, float, str)) else type(inner).__name__]


class GraphEncoder:
    """Latents and text states from the graph's VAE and CLIP: an Encoder, see trainer/cache.py."""

    def __init__(self, model, clip, vae):
        self.model, self.clip, self.vae = model, clip, vae
        self.vae_id = fingerprint(vae.patcher)
        self.text_id = fingerprint(clip.patcher, clip.layer_idx, getattr(clip, "tokenizer_options", None))

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] in -1..1 -> [B, 16, H / 8, W / 8] in the model's own scale."""
        with torch.inference_mode():
            raw = self.vae.encode((pixels / 2 + 0.5).permute(0, 2, 3, 1))
            latent = self.model.model.process_latent_in(raw)
        if latent.shape[1] != 16:
            raise AtelierError(f"The VAE makes {latent.shape[1]} channels, Flux.1 needs 16. Load a Flux VAE.")
        return latent.clone()

    def decode(self, latents: Tensor) -> Tensor:
        """[B, 16, h, w] in the model's own scale -> [B, 3, 8 h, 8 w] in 0..1."""
        with torch.inference_mode():
            pixels = self.vae.decode(self.model.model.process_latent_out(latents.detach().float().cpu()))
        return pixels.clone().permute(0, 3, 1, 2).float()

    def encode_text(self, text: str) -> tuple[Tensor, Tensor]:
        """A prompt -> T5 states [N, D] and CLIP's pooled vector [P]."""
        with torch.inference_mode():
            states, extra = condition(self.clip, text)[0]
        if extra.get("pooled_output") is None:
            raise AtelierError(
                "The CLIP gives no pooled vector, so it is not Flux's. Load CLIP-L and T5-XXL of type flux."
            )
        return states[0].clone().float(), extra["pooled_output"][0].clone().float()


def condition(clip, text: str, guidance: float | None = None) -> list:
    """Encode a prompt as ComfyUI's own text node does, with guidance where it is given."""
    extra = {} if guidance is None else {"guidance": guidance}
    return clip.encode_from_tokens_scheduled(clip.tokenize(text), add_dict=extra)


# --- sampling ----------------------------------------------------------------------------------------------------------


def with_lora(model, lora: dict[str, Tensor], strength: float):
    """A clone of a MODEL with a LORA_MODEL applied."""
    return comfy.sd.load_lora_for_models(model, None, lora, strength, 0)[0]


def sample(model, positive: list, latent: Tensor, seed: int, steps: int, denoise: float = 1.0) -> Tensor:
    """Sample with ComfyUI's Euler sampler and simple schedule at cfg 1.

    latent  [B, 16, h, w] raw VAE scale; zeros for text to image
    ->      [B, 16, h, w] raw VAE scale
    """
    noise = comfy.sample.prepare_noise(latent, seed)
    bar = comfy.utils.PROGRESS_BAR_ENABLED
    return comfy.sample.sample(
        model, noise, steps, 1.0, "euler", "simple", positive, positive, latent,
        denoise=denoise, disable_pbar=not bar, seed=seed, callback=lambda *_: check_cancel(),
    )  # fmt: skip


# --- nano-flux ---------------------------------------------------------------------------------------------------------


def load_nano_model():
    """nano-flux's transformer through ComfyUI's own diffusion model loader."""
    return comfy.sd.load_diffusion_model(str(nano_files.TRANSFORMER))


def load_nano_vae():
    return comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(nano_files.VAE)))


def load_nano_clip():
    """nano-flux's text encoders as a CLIP; ComfyUI's Flux classes with smaller sizes and other tokenizers."""
    clip_config = json.loads((nano_files.CLIP / "config.json").read_text())
    # The same function under the only name ComfyUI knows.
    t5_config = json.loads((nano_files.T5 / "config.json").read_text()) | {"dense_act_fn": "gelu_pytorch_tanh"}
    clip_state = comfy.utils.load_torch_file(str(nano_files.CLIP / "model.safetensors"))
    # ComfyUI builds CLIP-L with CLIP's own 49,408 rows; the rows beyond our vocabulary are never asked for.
    rows = "text_model.embeddings.token_embedding.weight"
    table = clip_state[rows].new_zeros(49408, clip_state[rows].shape[1])
    table[: len(clip_state[rows])] = clip_state[rows]
    clip_state[rows] = table
    clip_state["text_projection.weight"] = torch.eye(table.shape[1], dtype=table.dtype)
    options = {"clip_l_model_config": clip_config, "t5xxl_model_config": t5_config}
    clip = comfy.sd.CLIP(
        comfy.supported_models_base.ClipTarget(NanoTokenizer, comfy.text_encoders.flux.flux_clip()),
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
        model_options=options,
        state_dict=[clip_state, comfy.utils.load_torch_file(str(nano_files.T5 / "model.safetensors"))],
    )
    end = clip_config["eos_token_id"]
    clip.cond_stage_model.clip_l.special_tokens = {"start": clip_config["bos_token_id"], "end": end, "pad": end}
    return clip


class NanoTokenizer(comfy.text_encoders.flux.FluxTokenizer):
    """ComfyUI's Flux tokenizer over nano-flux's vocabularies, padding T5 to 16 tokens."""

    def __init__(self, embedding_directory=None, tokenizer_data=None):
        from transformers import PreTrainedTokenizerFast

        make, data = comfy.sd1_clip.SDTokenizer, tokenizer_data or {}
        self.clip_l = make(
            str(nano_files.CLIP), embedding_directory=embedding_directory, embedding_size=64, tokenizer_data=data
        )
        self.t5xxl = make(
            str(nano_files.T5), embedding_directory=embedding_directory, pad_with_end=False, embedding_size=128,
            embedding_key="t5xxl", tokenizer_class=PreTrainedTokenizerFast, has_start_token=False,
            pad_to_max_length=False, max_length=99999999, min_length=nano_files.T5_LENGTH, tokenizer_data=data,
        )  # fmt: skip


@contextmanager
def video_file(video) -> Iterator[Path]:
    """A VIDEO as a file on disk: its own where it has one, else a copy in the temp folder that is removed after."""
    source = video.get_stream_source()
    if isinstance(source, str) and not trimmed(video):
        yield Path(source)
        return
    copy = temp_file(f"flux_atelier_{uuid4().hex}.mp4")
    try:
        video.save_to(str(copy))
        yield copy
    finally:
        copy.unlink(missing_ok=True)


def trimmed(video) -> bool:
    """Whether a VIDEO is only a part of its file."""
    window = getattr(video, "get_active_trim_window", None)
    return window is not None and any(window())
