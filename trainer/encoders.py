"""Latents and text states through diffusers and transformers, as ComfyUI would make them.

The same conventions as in the graph: the mode of the VAE's posterior, T5 padded and not masked, CLIP's pooled vector
at its end token.
"""

import torch
from torch import Tensor

from ..core.errors import AtelierError
from ..core.files import digest
from .models import ModelFiles, load_vae


class FileEncoder:
    """An Encoder (see cache.py) over files; each part is opened when it is first needed."""

    def __init__(self, files: ModelFiles, device: torch.device):
        self.files, self.device = files, device
        self._vae = None
        self._text = None
        self.vae_id = _folder_digest(files.vae)
        self.text_id = f"{_folder_digest(files.clip)}-{_folder_digest(files.t5)}-{files.t5_length}"

    @property
    def vae(self):
        if self._vae is None:
            self._vae = load_vae(self.files.vae).to(self.device)
        return self._vae

    @property
    def text(self) -> "TextEncoders":
        if self._text is None:
            self._text = TextEncoders(self.files, self.device)
        return self._text

    @torch.no_grad()
    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] in -1..1 -> [B, 16, H / 8, W / 8] in the model's own scale."""
        vae, pixels = self.vae, pixels.to(self.device, self.vae.dtype)
        if type(vae).__name__ == "AutoencoderKL":
            latent = vae.encode(pixels).latent_dist.mode()
            return (latent - vae.config.shift_factor) * vae.config.scaling_factor
        return vae.encode(pixels).latents

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """[B, 16, h, w] in the model's own scale -> [B, 3, 8 h, 8 w] in 0..1."""
        vae, latents = self.vae, latents.to(self.device, self.vae.dtype)
        if type(vae).__name__ == "AutoencoderKL":
            latents = latents / vae.config.scaling_factor + vae.config.shift_factor
        return (vae.decode(latents).sample.float() / 2 + 0.5).clamp(0, 1)

    def encode_text(self, text: str) -> tuple[Tensor, Tensor]:
        """A prompt -> T5 states [N, D] and CLIP's pooled vector [P], float32."""
        return self.text.encode(text)

    def release(self) -> None:
        """Give the VAE's and text encoders' memory back."""
        self._vae = self._text = None


class TextEncoders:
    """CLIP-L and T5 with their tokenizers, from folders that transformers reads."""

    def __init__(self, files: ModelFiles, device: torch.device):
        from transformers import AutoTokenizer, CLIPTextModel, CLIPTokenizer, T5EncoderModel

        self.length, self.device = files.t5_length, device
        self.clip_tokenizer = CLIPTokenizer.from_pretrained(files.clip_tokenizer, local_files_only=True)
        self.t5_tokenizer = AutoTokenizer.from_pretrained(files.t5_tokenizer, local_files_only=True)
        # Random or trained, text encoders of this size cost little in float32 on a CPU; on a GPU T5-XXL wants bf16.
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        self.clip = CLIPTextModel.from_pretrained(files.clip, local_files_only=True, dtype=dtype).to(device).eval()
        self.t5 = T5EncoderModel.from_pretrained(files.t5, local_files_only=True, dtype=dtype).to(device).eval()

    @torch.no_grad()
    def encode(self, text: str) -> tuple[Tensor, Tensor]:
        ids = self.t5_tokenizer(text).input_ids
        ids = ids + [self.t5_tokenizer.pad_token_id] * (self.length - len(ids))
        states = self.t5(torch.tensor([ids], device=self.device)).last_hidden_state[0]
        words = self.clip_tokenizer(text, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
        pooled = self.clip(words.input_ids.to(self.device)).pooler_output[0]
        return states.float(), pooled.float()


def _folder_digest(path) -> str:
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise AtelierError(f"{path} has no .safetensors file. Check the path.")
    return "-".join(digest(f, 8) for f in files)
