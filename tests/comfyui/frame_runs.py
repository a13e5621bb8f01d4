"""The frames room's nodes as the executor calls them, small models of core's, and a cancel at a place."""

from pathlib import Path

import comfy.model_management as memory
import comfy.model_patcher
import torch

from flux_atelier.nodes import frames, host
from flux_atelier.trainer.demo.pictures import moving_clip

FLOW = dict(method="flow", rife_model="", gpu=-1)


def some_clip():
    """Five frames [5, 64, 64, 3] of a moving picture."""
    return moving_clip(9, side=64)[::2].permute(0, 2, 3, 1).contiguous()


def run(node, **inputs):
    """Execute a node as ComfyUI does."""
    with torch.inference_mode():
        return node.PREPARE_CLASS_CLONE(None).execute(**inputs)


def smooth(images, **more):
    return run(frames.InterpolateFrames, **dict(images=images, rate="2x") | FLOW | more).args


def network(kind):
    """A model of core's with random weights, loaded as core's loader does."""
    from comfy_extras.frame_interpolation_models.film_net import FILMNet
    from comfy_extras.frame_interpolation_models.ifnet import IFNet
    from comfy_extras.nodes_frame_interpolation import FrameInterpolationModelLoader

    torch.manual_seed(1)
    small = dict(filters=4, flow_convs=(1, 1, 1, 1), flow_filters=(4, 4, 4, 4))
    net = IFNet(head_ch=2, channels=(4, 4, 4, 4, 4)) if kind == "rife" else FILMNet(**small)
    state = {k: torch.randn_like(v) * v[0].numel() ** -0.5 for k, v in net.state_dict().items()}
    if kind == "rife":
        net = FrameInterpolationModelLoader._detect_and_load(state)
    net.load_state_dict(state)
    net.eval()
    return comfy.model_patcher.CoreModelPatcher(
        net, load_device=torch.device("cpu"), offload_device=torch.device("cpu")
    )


def by_core(patcher, images, times=2):
    from comfy_extras.nodes_frame_interpolation import FrameInterpolate

    with torch.inference_mode():
        return FrameInterpolate.execute(patcher, images, times).args[0]


def video_of(path, **more):
    from comfy_api.latest import InputImpl

    return InputImpl.VideoFromFile(str(path), **more)


def smooth_video(video, **more):
    return run(frames.InterpolateVideo, **dict(video=video, rate="60") | FLOW | more)


def made_by(result):
    return Path(result.args[0].get_stream_source())


def cancel_at(monkeypatch, number):
    """Cancel once, when the bar comes to a number."""
    at, left = host.Progress.at, [1]

    def cancel(self, value, picture=None):
        if value == number and left:
            left.clear()
            memory.interrupt_current_processing()
        at(self, value, picture)

    monkeypatch.setattr(host.Progress, "at", cancel)
