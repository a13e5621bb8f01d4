"""Flux Atelier: from a folder of pictures to a Flux LoRA and on to pictures and video, inside ComfyUI.

ComfyUI enters by `comfy_entrypoint`. Elsewhere this file does nothing: the library is imported as `flux_atelier`.
"""

from importlib.util import find_spec

WEB_DIRECTORY = "./web"

if __package__ and find_spec("comfy_api") is not None:
    from .nodes.extension import comfy_entrypoint as comfy_entrypoint
