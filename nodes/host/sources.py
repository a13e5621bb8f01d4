"""Where pictures may come from in ComfyUI, and where their stores lie."""

from pathlib import Path

from ...core.dataset.sources import ARCHIVES, VIDEOS
from ...core.errors import AtelierError
from .folders import output_folder, picture_roots

FILES = (*ARCHIVES, ".parquet", *VIDEOS)


def picture_source(name: str) -> Path:
    """Find a folder, archive, table or video by its name below the roots, or by an absolute path inside one of them.

    Raises AtelierError that lists where it looked.
    """
    name = name.strip()
    if not name:
        raise AtelierError("The folder is empty. Give the name of a folder in ComfyUI's input folder.")
    roots = picture_roots()
    for root in roots:
        path = (root / name).resolve()
        if not path.is_relative_to(root):
            continue
        if path.is_dir() or (path.is_file() and path.name.lower().endswith(FILES)):
            return path
        if path.is_file():
            raise AtelierError(f"{name} is not of a known kind. Give a folder, .zip, .tar, .parquet or a video.")
    places = ", ".join(str(r) for r in roots)
    raise AtelierError(
        f"There is no folder {name} below {places}. Put the pictures there, "
        "or add their folder under datasets: in extra_model_paths.yaml."
    )


def datasets_folder() -> Path:
    """The folder of all stores: output/flux_atelier/datasets."""
    return output_folder("flux_atelier", "datasets")
