"""Loads the checkout as the package flux_atelier, and ComfyUI beside it where there is one."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

# `python -m pytest` puts the checkout first on the path, where our `nodes` would shadow ComfyUI's.
sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != ROOT]


def comfyui_folder() -> Path | None:
    """The ComfyUI checkout to test in: COMFYUI_PATH, else ~/ComfyUI, else none."""
    folder = Path(os.environ.get("COMFYUI_PATH") or Path.home() / "ComfyUI")
    return folder if (folder / "comfy_api" / "latest").is_dir() else None


def _enter_comfyui() -> None:
    sys.path.insert(0, str(COMFYUI))
    import comfy.options

    comfy.options.enable_args_parsing(False)
    from comfy.cli_args import args

    args.cpu = True
    args.use_pytorch_cross_attention = True


def _load_package() -> None:
    spec = importlib.util.spec_from_file_location(
        "flux_atelier", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    package = importlib.util.module_from_spec(spec)
    sys.modules["flux_atelier"] = package
    spec.loader.exec_module(package)


COMFYUI = comfyui_folder()
if COMFYUI:
    _enter_comfyui()
_load_package()


@pytest.fixture(scope="session")
def comfyui() -> Path:
    if COMFYUI is None:
        pytest.skip("no ComfyUI checkout: set COMFYUI_PATH, or put one at ~/ComfyUI")
    return COMFYUI


# Helpers beside the tests are imported by their plain names.
for folder in (".", "trainer", "core", "comfyui"):
    sys.path.append(str(ROOT / "tests" / folder))


@pytest.fixture(autouse=True)
def seeded():
    """The same random numbers in every run: a bound is met always or never."""
    import torch

    torch.manual_seed(0)
