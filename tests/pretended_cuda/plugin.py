"""A pytest plugin: tests marked `gpu` run on a CUDA device that is not there (see `tensors`).

    python -m pytest -p tests.pretended_cuda.plugin -m gpu

Needs a C++ compiler, and a process of its own: what it tells torch cannot be taken back.
"""

import contextlib
import ctypes
import importlib.util
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

if "torch" in sys.modules:
    raise RuntimeError("torch was imported before it could be told of a device: give -p first")


def _load_device() -> None:
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None
    torch_folder = Path(spec.origin).parent
    include, libraries = torch_folder / "include", torch_folder / "lib"
    source = Path(__file__).with_name("device.cpp")
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "device.so"
        command = [os.environ.get("CXX", "c++"), "-std=c++20", "-shared", "-fPIC", str(source)]
        command += [f"-I{include}", f"-I{include / 'torch' / 'csrc' / 'api' / 'include'}"]
        command += [f"-L{libraries}", "-lc10", "-ltorch_cpu", "-o", str(made)]
        subprocess.run(command, check=True)
        names = ("libtorch_global_deps.so", "libc10.so", "libtorch_cpu.so")
        for library in (*(libraries / name for name in names), made):
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


_load_device()

import torch  # noqa: E402

from tests.pretended_cuda.tensors import Pretending  # noqa: E402


class Stream:
    """The only one: what is asked of it is done already."""

    def synchronize(self) -> None: ...

    def wait_stream(self, other: "Stream") -> None: ...


ONLY = Stream()


def pytest_configure() -> None:
    """From here on there is a CUDA device."""
    told: dict[str, Any] = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "current_stream": lambda device=None: ONLY,
        "stream": lambda stream: contextlib.nullcontext(),
        "synchronize": lambda device=None: None,
        "get_device_name": lambda device=None: "pretended",
        "is_bf16_supported": lambda including_emulation=True: True,
        "max_memory_allocated": lambda device=None: 1,
        "get_rng_state": lambda device=None: torch.get_rng_state(),
        "set_rng_state": lambda state, device=None: torch.set_rng_state(state),
    }
    for name, function in told.items():
        setattr(torch.cuda, name, function)
    # a parameter that moves changes its class and stays who it is: tied weights stay tied
    torch.__future__.set_swap_module_params_on_conversion(True)
    # `torch.tensor` makes its values on the CPU and moves them, which a mode can see
    torch._C._set_only_lift_cpu_tensors(True)
    Pretending().__enter__()
    run = threading.Thread.run

    def pretending(thread: threading.Thread) -> None:
        with Pretending():  # modes are a thread's own
            run(thread)

    threading.Thread.run = pretending  # type: ignore[method-assign]
