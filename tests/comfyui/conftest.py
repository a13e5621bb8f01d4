"""ComfyUI in process: its models, its inference mode, its folders in a place of their own."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def folders(comfyui, tmp_path_factory):
    """Folders of each file's own: names of runs, LoRAs and videos meet in no other's."""
    import folder_paths

    base = tmp_path_factory.mktemp("comfyui")
    for kind in ("input", "output", "temp", "user"):
        (base / kind).mkdir()
        getattr(folder_paths, f"set_{kind}_directory")(str(base / kind))
    return base


@pytest.fixture(scope="module", autouse=True)
def unloaded(comfyui):
    """No model in memory carries what another file's tests have patched in."""
    import comfy.model_management

    comfy.model_management.unload_all_models()


@pytest.fixture(scope="session")
def nano(comfyui):
    """nano-flux as ComfyUI loads it: model, clip, vae, made in inference mode as the executor does."""
    import torch

    from flux_atelier.nodes import host

    with torch.inference_mode():
        return host.load_nano_model(), host.load_nano_clip(), host.load_nano_vae()
