"""Models in folders, such as people keep for captioning anywhere below ComfyUI's models folder; nothing is fetched."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import comfy.model_management as memory
import folder_paths
import torch

from ...core.errors import AtelierError

DEEPEST = 5  # folders below a root: LLM/Qwen-VL/<name>, or models--x/snapshots/<hash> below LLM
NO_MODELS = ("custom_nodes", "datasets", "configs")
CLIPS = ("clip", "siglip", "siglip2")
NOTHING = "no folder found"  # what a list shows that has nothing to offer


def vision_folders() -> dict[str, Path]:
    """Folders with a config.json that names a kind of model, other than CLIP, by what a list calls them."""
    return {name: path for name, path, files in _folders() if _kind(path, files) not in ("", *CLIPS)}


def clip_folders() -> dict[str, Path]:
    """Folders of CLIP and SigLIP models."""
    return {name: path for name, path, files in _folders() if _kind(path, files) in CLIPS}


def tagger_folders() -> dict[str, Path]:
    """Folders with a tagger's two files."""
    return {name: path for name, path, files in _folders() if {"model.onnx", "selected_tags.csv"} <= files}


def folder_of(name: str, known: dict[str, Path]) -> Path:
    """Where a folder of a list lies; raises AtelierError that says where to put one."""
    if name not in known:
        models = folder_paths.models_dir
        raise AtelierError(
            f"There is no model folder {name!r} below {models}. Put it there, for instance into {models}/LLM, "
            "or add its place under LLM: in extra_model_paths.yaml."
        )
    return known[name]


def _folders() -> Iterator[tuple[str, Path, set[str]]]:
    """Name, path and files of each folder below a root of models; each folder once."""
    seen: set[str] = set()
    for label, root in _roots():
        for path, below, files in os.walk(root, followlinks=True):
            inner = Path(path).relative_to(root)
            real = os.path.realpath(path)
            below[:] = sorted(name for name in below if not name.startswith(".") and len(inner.parts) < DEEPEST)
            if real in seen:
                below.clear()
                continue
            seen.add(real)
            if files:
                yield (Path(label) / inner).as_posix(), Path(path), set(files)


def _roots() -> list[tuple[str, Path]]:
    """The models folder, and what extra_model_paths.yaml adds, each with what its names begin with."""
    models = Path(folder_paths.models_dir)
    roots = [("", models)]
    for kind, (paths, _) in sorted(folder_paths.folder_names_and_paths.items()):
        if kind not in NO_MODELS:
            roots += [(kind, Path(path)) for path in paths if not Path(path).is_relative_to(models)]
    return roots


def _kind(path: Path, files: set[str]) -> str:
    """The type of model that a folder's config.json names; empty where there is none to be read."""
    if "config.json" not in files:
        return ""
    try:
        found = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    return str(found.get("model_type") or "") if isinstance(found, dict) else ""


def freed_device() -> torch.device:
    """Where ComfyUI computes, after its own models made room there."""
    memory.unload_all_models()
    memory.soft_empty_cache()
    return memory.get_torch_device()
