"""`normforge doctor`: what this system offers, found by trying it."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import typer

from normforge.errors import NormforgeError


@dataclass(frozen=True)
class Line:
    """One finding: `ok` is False only for what stops a backend that this system should have."""

    what: str
    ok: bool
    detail: str


def doctor() -> None:
    """Check compilers, devices and versions, compile and run one layer on each backend that is there."""
    ok = True
    for line in examine():
        ok &= line.ok
        print(f"{'ok  ' if line.ok else 'FAIL'} {line.what:<12} {line.detail}")
    if not ok:
        raise typer.Exit(1)


def examine() -> Iterator[Line]:
    """All findings about this system, in the order in which they are made."""
    yield Line("python", True, f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    for package in ("normforge", "torch", "triton", "timm", "scikit-learn"):
        try:
            yield Line(package, True, version(package))
        except PackageNotFoundError:
            yield Line(package, package in ("triton", "normforge"), "not installed")
    import torch

    from normforge.cache import cache_directory
    from normforge.kernels import toolchain
    from normforge.kernels.pool import POOL

    yield Line("cache", True, str(cache_directory()))
    compiler = toolchain.find_compiler()
    if compiler is None:
        yield Line("C compiler", False, f"none: {toolchain.INSTALL_HINT}")
    else:
        yield Line("C compiler", True, toolchain.fingerprint().split("\n")[1])
        yield _try("c", "cpu")
    yield _try("eager", "cpu")
    if torch.cuda.is_available():
        yield Line("GPU", True, torch.cuda.get_device_name(0))
        yield _try("triton", "cuda")
    else:
        yield Line("GPU", True, "none: layers run on the CPU")
    yield Line("threads", True, str(torch.get_num_threads()))
    yield Line("pool of CPU outputs", True, POOL.describe())


def _try(backend: str, device: str) -> Line:
    """Train-mode output and gradient of a layer against the float64 evaluator."""
    import time

    import torch

    from normforge.ir import evaluate, layers
    from normforge.kernels.compile import compile as compile_layer

    graph = layers["evonorm-s0"]
    try:
        start = time.perf_counter()
        module = compile_layer(graph, channels=8, backend=backend).to(device)
        x = torch.randn(2, 8, 5, 5, device=device, requires_grad=True)
        y = module(x)
        y.sum().backward()
        seconds = time.perf_counter() - start
    except NormforgeError as e:
        return Line(backend, False, str(e))
    values = {"x": x.detach().cpu().numpy()} | {p.name: 8 * [p.attr[2]] for p in graph.params}
    reference = torch.from_numpy(evaluate(graph, values, groups=8)["y"].copy())
    error = (y.detach().cpu().double() - reference).abs().max().item()
    return Line(backend, error < 1e-5, f"runs on {device}, largest error {error:.1e}, first call {seconds:.2f} s")
