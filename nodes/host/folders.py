"""ComfyUI's folders, and names that may not lead out of them."""

import os
from collections.abc import Callable
from pathlib import Path

import folder_paths

from ...core.errors import AtelierError

ENDING = ".safetensors"
LONGEST = 220  # bytes of a name: file systems end at 255, and what is half written has a longer one


def output_folder(*parts: str) -> Path:
    """A folder below ComfyUI's output folder; raises AtelierError for a name that leads out of it."""
    return inside(Path(folder_paths.get_output_directory()), *parts)


def temp_file(name: str) -> Path:
    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    return inside(folder, name)


def lora_file(name: str) -> Path:
    """Where a finished LoRA goes: output/loras, which ComfyUI's loaders list; the name may have its ending or not."""
    stem = name[: -len(ENDING)] if name.lower().endswith(ENDING) else name
    if not stem.strip(" ."):
        raise AtelierError(f"The name is {name!r}. Give the LoRA a name.")
    return inside(output_folder("loras"), f"{stem}{ENDING}")


def lora_name_of(path: Path) -> str:
    """The name under which ComfyUI's loaders list a file of output/loras, folders below it included."""
    return str(path.relative_to(output_folder("loras")))


def lora_names() -> list[str]:
    """The LoRA files that ComfyUI knows."""
    return folder_paths.get_filename_list("loras")


def lora_path(name: str) -> Path:
    """Where a LoRA of that list lies; raises AtelierError if it is gone."""
    path = folder_paths.get_full_path("loras", name)
    if path is None:
        raise AtelierError(f"There is no LoRA {name} in ComfyUI's folders. Choose one of the list.")
    return Path(path)


def run_folder(name: str) -> Path:
    """A run's folder: output/flux_atelier/runs/<name>."""
    return inside(output_folder("flux_atelier", "runs"), name)


def inside(root: Path, *parts: str) -> Path:
    """A path below a root, .. worked out by names alone; raises AtelierError if a part leads out of it.

    A link that a person has put below the root is followed: models and outputs often lie on another disk.
    """
    name = "/".join(parts)
    if "\0" in name or any(len(part.encode()) > LONGEST for part in Path(name).parts):
        raise AtelierError(f"The name {name[:40]!r}... cannot be a file's. Use a shorter, plain one.")
    root = Path(os.path.abspath(root))
    path = Path(os.path.abspath(root.joinpath(*parts)))
    if path == root or not path.is_relative_to(root):
        raise AtelierError(f"The name {name!r} leads out of {root}. Use a name without .. that does not begin with /.")
    return path


def named(root: Path, name: str) -> Path:
    """A folder below a root by a name that a person gave; raises AtelierError for none, or one that leads out."""
    if not name.strip(" ./\\"):
        raise AtelierError(f"The name is {name!r}. Give the folder a name.")
    return inside(root, name.strip())


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
