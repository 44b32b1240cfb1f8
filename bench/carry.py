"""Compiled kernels as an archive: out of a cache of Triton's, and into one on another machine."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

KEPT = (".json", ".cubin", ".so")  # what a launch needs; the texts on the way are left out


def pack(cache: Path, archive: Path) -> int:
    """The kernels of a cache as an archive; how many. Triton's lists of the files of a kernel have whole paths: here,
    names."""
    count = 0
    with tarfile.open(archive, "w:xz") as tar:
        for path in sorted(p for p in cache.rglob("*") if p.is_file() and p.suffix in KEPT):
            data = path.read_bytes()
            if path.name.startswith("__grp__"):
                children = json.loads(data)["child_paths"]
                data = json.dumps({"child_paths": {c: c for c in children if c.endswith(KEPT)}}).encode()
                count += 1
            info = tarfile.TarInfo(str(path.relative_to(cache)))
            info.size, info.mode = len(data), 0o755
            tar.addfile(info, io.BytesIO(data))
    return count


def unpack(archive: Path, cache: Path) -> int:
    """Put the kernels of an archive into a cache of Triton's; how many."""
    cache.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as tar:
        tar.extractall(cache, filter="data")
    count = 0
    for path in cache.rglob("__grp__*"):
        children = json.loads(path.read_text())["child_paths"]
        path.write_text(json.dumps({"child_paths": {c: str(path.parent / c) for c in children}}))
        count += 1
    return count
