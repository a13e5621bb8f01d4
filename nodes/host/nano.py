"""nano-flux as the MODEL, CLIP and VAE that ComfyUI's own loaders would make of it."""

import json

import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
import comfy.text_encoders.flux
import comfy.utils
import folder_paths
import torch

from ...trainer.nano import files as nano_files


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
