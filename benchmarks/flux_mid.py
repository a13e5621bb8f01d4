"""The model and data of the trainer's benchmark: a random Flux.1 of 145 M parameters in bf16, and four captioned pictures.

8 heads of 128, 2 double and 4 single blocks, batch 1; 144 image and 36 text tokens, one to four as in ComfyUI at 512 x 512
pixels, which pads T5 to 256. diffusers' script pads to 512: 72 here. The text encoders are random too. T5 is sized by
its share: T5-XXL at 512 tokens costs 4.8 TFLOP where Flux.1 dev at 512 x 512 pixels costs 21.5 for one forward pass,
22 %; the T5 at 72 tokens here is 22 % of this model's forward pass. CLIP-L is 0.06 % there and hardly anything here.
"""

from pathlib import Path

import torch
from torch import Tensor

SHAPE = {"hidden": 1024, "double": 2, "single": 4, "channels": 64, "context": 512, "pooled": 64, "mlp": 4096}
IMAGE, TEXT, SCRIPT_TEXT, PICTURES = (24, 24), 36, 72, 4
SHIFT, SCALE = 0.1159, 0.3611  # Flux's VAE: what a transformer sees is (latent - SHIFT) * SCALE
RANK, LEARNING_RATE, LEVELS = 16, 5e-4, 4
MODEL, DATA, TEXT_ENCODERS = "model.safetensors", "data.safetensors", "text"


def shape():
    from flux_atelier.core.flux.layout import FluxShape

    return FluxShape(guidance=True, **SHAPE)


def write(folder: Path) -> None:
    """Make the model file, the text encoders and the data once; every contender reads the same ones."""
    from safetensors.torch import save_file

    from flux_atelier.trainer.flux.tree import FluxTree

    torch.manual_seed(0)
    state = {k: v.to(torch.bfloat16) for k, v in FluxTree(shape()).state_dict().items()}
    save_file(state, folder / MODEL)
    t5, clip = text_encoders()
    rng = torch.Generator().manual_seed(1)
    latents = torch.randn(PICTURES, 16, 6, 6, generator=rng)
    latents = torch.nn.functional.interpolate(latents, size=IMAGE, mode="bilinear")  # smooth, as pictures are
    data = {"latents": latents / SCALE + SHIFT, **token_ids(rng)}
    with torch.no_grad():
        data["states"], data["pooled"] = encode(t5.float(), clip.float(), data["t5_ids"][:, :TEXT], data["clip_ids"])
    save_file({k: v.contiguous() for k, v in data.items()}, folder / DATA)


def read(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    data = load_file(folder / DATA)
    return data | {"scaled": (data["latents"] - SHIFT) * SCALE}


def token_ids(rng: torch.Generator) -> dict[str, Tensor]:
    """Captions as token ids, padded; tokenizing itself costs next to nothing."""
    return {
        "t5_ids": torch.randint(3, 256, (PICTURES, SCRIPT_TEXT), generator=rng),
        "clip_ids": torch.cat(
            [torch.randint(3, 250, (PICTURES, 76), generator=rng), torch.full((PICTURES, 1), 255)], 1
        ),
    }


def text_encoders():
    """A random T5 and CLIP in bf16, the same each time."""
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    torch.manual_seed(2)
    width = SHAPE["context"]
    t5 = T5EncoderModel(
        T5Config(
            vocab_size=256, d_model=width, d_kv=64, d_ff=768, num_layers=23, num_heads=8,
            feed_forward_proj="gated-gelu", is_encoder_decoder=False,
        )
    )  # fmt: skip
    clip = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=256, hidden_size=SHAPE["pooled"], intermediate_size=128, num_hidden_layers=2,
            num_attention_heads=1, eos_token_id=255, bos_token_id=254, pad_token_id=255,
        )
    )  # fmt: skip
    return t5.to(torch.bfloat16).eval(), clip.to(torch.bfloat16).eval()


def encode(t5, clip, t5_ids: Tensor, clip_ids: Tensor) -> tuple[Tensor, Tensor]:
    return t5(t5_ids).last_hidden_state, clip(clip_ids).pooler_output


@torch.no_grad()
def velocity_error(velocity, data: dict[str, Tensor]) -> float:
    """Mean squared error of the velocity on fixed pictures, noise and noise levels; the same judge for everybody.

    velocity  (noised latent, sigma, states, pooled) -> velocity, in float32
    """
    rng = torch.Generator().manual_seed(3)
    total = 0.0
    for i in range(PICTURES):
        latent, states, pooled = (data[k][i : i + 1] for k in ("scaled", "states", "pooled"))
        for level in range(LEVELS):
            sigma, noise = torch.tensor([(level + 0.5) / LEVELS]), torch.randn(latent.shape, generator=rng)
            out = velocity((1 - sigma) * latent + sigma * noise, sigma, states, pooled)
            total += (out.float() - (noise - latent)).square().mean().item()
    return total / (PICTURES * LEVELS)
