"""Provenance, all that a run's results depend on beside its configuration: data, device, machine and code."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from importlib.metadata import version

from normforge.errors import BackendError
from normforge.search.config import Config
from normforge.search.sources import ROOT, reached_from

_EVALUATES = "normforge.search.evaluate"
_LIBRARIES = ("torch", "triton", "timm", "numpy")


@dataclass(frozen=True)
class Provenance:
    """Everything that the results of one session of a run depend on, its configuration aside.

    Attributes:
        digest: of the data.
        classes: of the data.
        device: that evaluates, `cpu` or `cuda`.
        machine: what decides the last bits of a result there: instruction sets and compiler, or the GPU; the libraries.
        code: digest of the source that scores depend on.
    """

    digest: str
    classes: int
    device: str
    machine: str
    code: str


def provenance(config: Config, *, download: bool = False) -> Provenance:
    """The provenance of a session that begins here and now. Loads the data.

    Raises:
        OptionError: data that cannot be read.
    """
    from normforge.train.data import load_data  # imports torch
    from normforge.train.device import device_of

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
    """Hex digest of the source that scores depend on: what `search/evaluate.py` imports, and what that imports."""
    h = blake2b(digest_size=16)
    for path in sorted(reached_from(_EVALUATES)):
        h.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return h.hexdigest()
