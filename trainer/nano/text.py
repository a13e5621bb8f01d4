"""nano-flux's text encoders: a tiny CLIP and a tiny T5 with tokenizers of their own, random and frozen.

They need no training because the T5 is built to tell words apart by their neighbours: its relative position bias makes
each attention head read one fixed offset, so the vector of "red" differs before "circle" and before "background".

    python -m flux_atelier nano make-text
"""

import json
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from ...core.files import write_tensors
from . import scenes

STYLE_WORDS = [
    "in",
    "painterly",
    "style",
    "brush",
    "strokes",
    "oil",
    "painting",
    "of",
    "photo",
    "picture",
    "drawing",
    "the",
    "and",
    "with",
    "sks",
]

HEAD_OFFSETS = (-1, 1, -2, 2)  # the neighbour that each T5 head reads
CLIP_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def words() -> list[str]:
    """Every word of the scenes' captions and a few more, in a fixed order."""
    seen = {w: None for s in scenes.every_scene() for w in s.caption.replace(",", " ,").split()}
    return [*seen, *(w for w in STYLE_WORDS if w not in seen)]


def t5_tokenizer() -> PreTrainedTokenizerFast:
    """Unigram over whole words, with single characters to fall back on; `</s>` ends a text."""
    pieces: list[tuple[str, float]] = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -50.0)]
    pieces += [("▁" + w, -1.0) for w in words() if w != ","] + [(",", -1.0), ("▁", -4.0)]
    pieces += [(chr(c), -10.0) for c in range(33, 127) if chr(c) != ","]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>", pad_token="<pad>", model_max_length=512
    )


def write_clip_tokenizer(folder: Path) -> None:
    """Byte-level BPE with `</w>`, trained on the captions, in CLIP's vocab.json and merges.txt."""
    bpe = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>", continuing_subword_prefix=""))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    split = pre_tokenizers.Split(Regex(CLIP_PATTERN), behavior="removed", invert=True)
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=900, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    bpe.train_from_iterator([" ".join(words())] * 4, trainer)
    learned = json.loads(bpe.to_str())["model"]
    vocab = dict(learned["vocab"])
    for letter in alphabet:
        for piece in (letter, letter + "</w>"):
            vocab.setdefault(piece, len(vocab))
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocab[special] = len(vocab)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    merges = [" ".join(m) if isinstance(m, list) else m for m in learned["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    names = {"bos_token": "<|startoftext|>"} | dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>")
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77} | names
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")


def make_clip(vocab: dict[str, int], seed: int) -> CLIPTextModel:
    """A two-layer CLIP text model, 64 wide."""
    torch.manual_seed(seed)
    end = vocab["<|endoftext|>"]
    config = CLIPTextConfig(
        vocab_size=len(vocab), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=77, projection_dim=64, hidden_act="quick_gelu",
        bos_token_id=vocab["<|startoftext|>"], eos_token_id=end, pad_token_id=end,
    )  # fmt: skip
    model = CLIPTextModel(config).eval()
    with torch.no_grad():  # the usual 0.02 leaves a random model almost constant
        for name, value in model.named_parameters():
            if value.dim() == 2:
                deviation = 1.0 if "token_embedding" in name else 0.3 if "position" in name else value.shape[1] ** -0.5
                value.normal_(0, deviation)
    return model


def make_t5(vocab_size: int, seed: int) -> T5EncoderModel:
    """A two-layer T5 encoder, 128 wide, whose heads read the neighbours in HEAD_OFFSETS."""
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=vocab_size, d_model=128, d_kv=32, d_ff=256, num_layers=2, num_heads=len(HEAD_OFFSETS),
        feed_forward_proj="gated-gelu", is_encoder_decoder=False, use_cache=False, tie_word_embeddings=False,
    )  # fmt: skip
    model = T5EncoderModel(config).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.dim() == 2:
                value.normal_(0, 1.0 if "shared" in name or "embed_tokens" in name else value.shape[1] ** -0.5)
            if name.endswith("SelfAttention.q.weight"):
                value.mul_(0.1)  # T5 does not scale its scores; the bias has to win
        bias = model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight.zero_()
        for head, offset in enumerate(HEAD_OFFSETS):
            bias[abs(offset) + (config.relative_attention_num_buckets // 2 if offset > 0 else 0), head] = 8.0
    return model


def main(out: Path, seed: int = 0) -> None:
    """Write `clip/` and `t5/` below `out`, each a folder that transformers reads."""
    write_clip_tokenizer(out / "clip")
    clip_tokenizer = CLIPTokenizer.from_pretrained(out / "clip")
    clip = make_clip(clip_tokenizer.get_vocab(), seed).half()
    clip.config.save_pretrained(out / "clip")
    # transformers 5 drops the prefix from its names; with it, every version and ComfyUI read the file.
    named = {f"text_model.{k.removeprefix('text_model.')}": v for k, v in clip.state_dict().items()}
    write_tensors(out / "clip" / "model.safetensors", named)
    tokenizer = t5_tokenizer()
    tokenizer.save_pretrained(out / "t5")
    make_t5(len(tokenizer), seed).half().save_pretrained(out / "t5")
