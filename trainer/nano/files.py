"""Where nano-flux lies in this folder."""

from pathlib import Path

FOLDER = Path(__file__).parent / "model"
TRANSFORMER = FOLDER / "nano-flux.safetensors"
VAE = FOLDER / "nano-flux-vae.safetensors"
CLIP = FOLDER / "clip"
T5 = FOLDER / "t5"
LORAS = Path(__file__).parent / "loras"
PAINTED = LORAS / "painted.safetensors"  # the painterly hand
DIAMOND = LORAS / "diamond.safetensors"  # the shape that nano-flux does not know
T5_LENGTH = 16  # tokens a prompt is padded to; longer prompts grow
