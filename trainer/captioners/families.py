"""Which prompt protocol a model folder takes, and whether it can be opened at all, from its small files only.

Three protocols cover the image-text models of transformers: a chat template with a part of type image; task tokens
(Florence-2); a text that the answer goes on from, which may be empty (BLIP, BLIP-2, GIT, PaliGemma).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...core.errors import AtelierError
from ...core.files import check_tensors
from .prompts import Ask

Protocol = Literal["chat", "task", "prefix"]
TASKS = {"florence2": "<MORE_DETAILED_CAPTION>"}
TASK_TOKENS = ("<CAPTION>", "<DETAILED_CAPTION>", "<MORE_DETAILED_CAPTION>", "<OCR>")
PREFIXES = {
    "blip": "", "blip-2": "", "git": "", "paligemma": "caption en", "instructblip": "Describe this image in detail.",
}  # fmt: skip
CHAT_PROMPT = "Describe this image in detail."
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
PROCESSORS = ("processor_config.json", "preprocessor_config.json")
TEMPLATES = ("chat_template.jinja", "chat_template.json")


@dataclass(frozen=True)
class Family:
    """How a model folder is asked: its type in transformers, the protocol and what it is asked by default."""

    model_type: str
    protocol: Protocol
    prompt: str

    def check(self, ask: Ask) -> None:
        """Raise AtelierError where this cannot be asked of this family."""
        turns = ask.turns
        if self.protocol != "chat" and ask.system:
            raise AtelierError(f"{self.model_type} models take no system text. Leave it empty.")
        if self.protocol != "chat" and len(turns) > 1:
            raise AtelierError(f"{self.model_type} models answer one prompt, not {len(turns)}. Give a single turn.")
        if self.protocol == "task" and turns[0] not in TASK_TOKENS:
            raise AtelierError(
                f"{self.model_type} models take a task token alone, not {turns[0][:60]!r}. Use {', '.join(TASK_TOKENS)}."
            )


def read_family(folder: Path) -> Family:
    """Tell how a model folder is asked, after looking whether it is whole.

    folder  as transformers' save_pretrained writes it
    Raises AtelierError if a file is missing, the model brings its own code, or no protocol is known for it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise AtelierError(f"There is no model folder {folder}. Give a folder with config.json and .safetensors files.")
    config = _json(folder, "config.json")
    kind = str(config.get("model_type", ""))
    _refuse_own_code(folder, config, kind)
    _check_whole(folder)
    if kind in TASKS:
        return Family(kind, "task", TASKS[kind])
    if kind in PREFIXES:
        return Family(kind, "prefix", PREFIXES[kind])
    if _has_template(folder):
        return Family(kind, "chat", CHAT_PROMPT)
    raise AtelierError(
        f"{folder.name} has no chat template, and {kind} models need one. Put chat_template.jinja of the model into it."
    )


def _json(folder: Path, name: str) -> dict:
    try:
        found = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AtelierError(f"{folder} has no {name}. Copy the whole model folder.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise AtelierError(f"{folder / name} is not JSON ({error}). Copy it again.") from None
    if not isinstance(found, dict):
        raise AtelierError(f"{folder / name} holds no table. Copy it again.")
    return found


def _refuse_own_code(folder: Path, config: dict, kind: str) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as native

    if kind in native:
        return
    if "auto_map" in config:
        raise AtelierError(
            f"{folder.name} ({kind}) runs only with Python code of its own, which this pack does not run. "
            "Choose a model that transformers knows, such as Qwen3-VL, LLaVA, Florence-2 or InternVL with -hf in its name."
        )
    raise AtelierError(
        f"{folder.name} is a {kind or 'model without a type'}, which this version of transformers does not caption with. "
        "Choose a vision-language model, such as Qwen3-VL, LLaVA or Florence-2."
    )


def _check_whole(folder: Path) -> None:
    for names, what in ((TOKENIZERS, "tokenizer"), (PROCESSORS, "image processor")):
        if not any((folder / name).is_file() for name in names):
            raise AtelierError(f"{folder} has no {what} ({' or '.join(names)}). Copy the whole model folder.")
    for shard in _shards(folder):
        if not shard.is_file():
            raise AtelierError(f"{folder} lacks {shard.name}, which its index names. Copy the whole model folder.")
        check_tensors(shard)


def _shards(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return [folder / name for name in sorted(set(_json(folder, index.name).get("weight_map", {}).values()))]
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        raise AtelierError(
            f"{folder} has no .safetensors file; pickled weights are not opened. Get the model's safetensors files."
        )
    return found


def _has_template(folder: Path) -> bool:
    if any((folder / name).is_file() for name in TEMPLATES):
        return True
    inside = ("processor_config.json", "tokenizer_config.json")
    return any((folder / name).is_file() and _json(folder, name).get("chat_template") for name in inside)
