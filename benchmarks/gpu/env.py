"""Stage: versions, driver, flags and ceilings, while CIFAR-10 is decoded in the background."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.ceilings import KINDS, copy_bytes, product_flops
from benchmarks.gpu.files import write_json
from benchmarks.gpu.session import Session, parse
from benchmarks.timing import machine
from grokscope.tasks.image_data import find_images
from grokscope.version import __version__

PACKAGES = (
    "torch", "triton", "numpy", "pydantic", "pandas", "pyarrow", "safetensors", "filelock", "typer",
)  # fmt: skip
VARIABLES = ("CUBLAS_WORKSPACE_CONFIG", "CUDA_DEVICE_MAX_CONNECTIONS", "GROKSCOPE_DATA")
IMAGES = "uoft-cs/cifar10"
LATE = "still being decoded when this stage ended"
DECODE = """
import os, sys, time
from contextlib import suppress
from grokscope.tasks.image_data import read_images
begin = time.monotonic()
for split in ("train", "test"):
    read_images(sys.argv[1], split)
with suppress(OSError):  # whoever started this may have ended
    os.write(1, f"{time.monotonic() - begin:.1f}".encode())
"""


def main() -> int:
    """Find out, and write ``env.json`` after each fact that takes time."""
    session = parse("env")
    facts: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "grokscope": __version__,
        "revision": os.environ.get("GROKSCOPE_REVISION") or revision(),
        "packages": versions(),
        "machine": machine(),
        "device": device_facts(session),
        "flags": flags(),
        "ceilings": {},
        "images": {"source": IMAGES, "status": "not decoded"},
    }
    path = session.out / "env.json"
    write_json(path, facts)
    decoder = decode(session)
    for name, measure in ceilings(session).items():
        facts["ceilings"][name] = measure()
        write_json(path, facts)
        print(f"  {name}: {facts['ceilings'][name]:.3g}", flush=True)
    facts["images"] |= decoded(decoder, session)
    write_json(path, facts)
    print(f"  images: {facts['images']['status']}", flush=True)
    return 0 if decoder is None or facts["images"]["status"] in ("decoded", LATE) else 1


def versions() -> dict[str, str]:
    """Versions of what is installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def device_facts(session: Session) -> dict[str, Any]:
    """The device, as torch and its driver describe it."""
    if not session.on_gpu:
        return {"name": str(session.device), "threads": torch.get_num_threads()}
    facts = torch.cuda.get_device_properties(session.device)
    free, total = torch.cuda.mem_get_info(session.device)
    return {
        "name": facts.name,
        "capability": f"{facts.major}.{facts.minor}",
        "multiprocessors": facts.multi_processor_count,
        "memory": total,
        "free": free,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),
        "driver": query("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
    }


def flags() -> dict[str, Any]:
    """What decides whether results repeat, and with which precision."""
    return {
        **{name: os.environ.get(name) for name in VARIABLES},
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "only warn": torch.is_deterministic_algorithms_warn_only_enabled(),
        "fill uninitialised memory": torch.utils.deterministic.fill_uninitialized_memory,
        "cuDNN deterministic": torch.backends.cudnn.deterministic,
        "cuDNN benchmark": torch.backends.cudnn.benchmark,
        **precisions(),
    }


def precisions() -> dict[str, Any]:
    """How products of float32 are rounded; asked for in the way in which it was set."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    if not hasattr(matmul, "fp32_precision"):  # PyTorch before 2.9
        return {"TF32 in products": matmul.allow_tf32, "TF32 in convolutions": cudnn.allow_tf32}
    return {
        "precision of products": matmul.fp32_precision,
        "precision of convolutions": cudnn.conv.fp32_precision,
    }


def ceilings(session: Session) -> dict[str, Callable[[], float]]:
    """What is to be measured, by name with its unit."""
    device = session.device
    copied = 2**31 if session.on_gpu else 2**24
    size = 8192 if session.on_gpu else 256

    def product(kind: str) -> Callable[[], float]:
        return lambda: product_flops(device, kind, size)

    return {
        "copy, bytes/s": lambda: copy_bytes(device, copied),
        **{f"product in {kind}, FLOP/s": product(kind) for kind in KINDS},
    }


def decode(session: Session) -> subprocess.Popen[str] | None:
    """Decode CIFAR-10 into the cache; None where a run would not find it, or in a smoke test.

    It has a group of its own, so that it can finish after this stage has ended.
    """
    if session.tiny or find_images(IMAGES) is None:
        return None
    command = [sys.executable, "-c", DECODE, IMAGES]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, process_group=0)


def decoded(decoder: subprocess.Popen[str] | None, session: Session) -> dict[str, str]:
    """How the decoding ended."""
    if decoder is None:
        why = "a smoke test" if session.tiny else "$GROKSCOPE_DATA has no cifar10"
        return {"status": f"not decoded: {why}"}
    try:
        output, _ = decoder.communicate(timeout=max(session.seconds_left, 0.1))
    except subprocess.TimeoutExpired:
        return {"status": LATE}
    if decoder.returncode:
        return {"status": f"not decoded: exit status {decoder.returncode}"}
    return {"status": "decoded", "seconds": output.strip()}


def revision() -> str | None:
    """Revision of this checkout; None where git or its folder is missing."""
    here = str(Path(__file__).parent)
    return query("git", "-C", here, "rev-parse", "--short=12", "HEAD") or None


def query(*command: str) -> str:
    """What a command prints; empty if it can't be run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
