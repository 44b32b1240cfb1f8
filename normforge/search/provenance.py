"""What a run's results depend on beside its configuration: data, device, machine and code."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path

from normforge.errors import BackendError
from normforge.search.config import Config

# What evaluates a layer; the rest of the search decides what is evaluated, and its reports change nothing.
_STAGES = ("evaluate", "stability", "double_backward", "objectives")
_EVALUATES = (
    "ir", "passes", "codegen", "kernels", "probing", "train", "streams", *(f"search/{name}" for name in _STAGES)
)  # fmt: skip
_LIBRARIES = ("torch", "triton", "timm", "numpy")


@dataclass(frozen=True)
class Provenance:
    """Of one session of a run.

    Attributes:
        digest: of the data.
        classes: of the data.
        device: that evaluates, `cpu` or `cuda`.
        machine: what decides the last bits of a result there: instruction sets and compiler, or the GPU; the libraries.
        code: digest of the source that evaluates.
    """

    digest: str
    classes: int
    device: str
    machine: str
    code: str


def provenance(config: Config, *, download: bool = False) -> Provenance:
    """Of a session that begins here and now. Loads the data.

    Raises:
        OptionError: data that cannot be read.
    """
    from normforge.search.evaluate import device_of
    from normforge.train.data import load_data  # imports torch

    data = load_data(config.data, download)
    device = device_of(config.workers.device)
    return Provenance(data.digest, data.classes, device, _machine(device, config.workers.threads), code())


def _machine(device: str, threads: int) -> str:
    import torch

    from normforge.kernels import toolchain

    libraries = " ".join(f"{name} {_version(name)}" for name in _LIBRARIES)
    if device == "cuda":
        # A cluster may have GPUs where this machine has none.
        name = torch.cuda.get_device_name() if torch.cuda.is_available() else "GPUs of a cluster"
        return f"{name}; {libraries}"
    try:
        compiled = blake2b(toolchain.fingerprint().encode(), digest_size=8).hexdigest()
    except BackendError:
        compiled = "no compiler"
    return f"{torch.backends.cpu.get_cpu_capability()}, {compiled}, {threads} threads; {libraries}"


def _version(name: str) -> str:
    try:
        return version(name)
    except ImportError:
        return "none"


@lru_cache(maxsize=1)
def code() -> str:
    """Hex digest of the source that evaluates."""
    root = Path(__file__).parent.parent
    h = blake2b(digest_size=16)
    for name in _EVALUATES:
        place = root / name
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]:
            h.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return h.hexdigest()
