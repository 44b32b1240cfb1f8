"""The disk cache of compiled objects: content-addressed, safe under concurrent processes, self-repairing."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path


def cache_directory() -> Path:
    """$NORMFORGE_CACHE, else $XDG_CACHE_HOME/normforge, else ~/.cache/normforge; a temporary one when unwritable."""
    named = os.environ.get("NORMFORGE_CACHE")
    base = Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "normforge"
    try:
        base.mkdir(parents=True, exist_ok=True)
        if os.access(base, os.W_OK):
            return base
    except OSError:
        pass
    fallback = Path(tempfile.gettempdir()) / f"normforge-{os.getuid() if hasattr(os, 'getuid') else 'cache'}"
    fallback.mkdir(mode=0o700, parents=True, exist_ok=True)
    return fallback


def digest(*parts: str) -> str:
    """The name of an entry: everything that decides its bytes goes in."""
    h = hashlib.blake2b(digest_size=20)
    for part in parts:
        h.update(len(part).to_bytes(8, "little") + part.encode())
    return h.hexdigest()


def entry(key: str, suffix: str, build: Callable[[Path], None], *, rebuild: bool = False) -> Path:
    """The file of an entry, built when it is not there or its bytes are not those that were written.

    Args:
        key: from `digest`.
        suffix: of the file, such as ".so".
        build: writes the file at the path that it is given.
        rebuild: build even when the bytes are as written.

    Concurrent builders each write a file of their own and rename it into place; the last one wins, and all
    have the same content. Where the disk of the cache is full, or its quota, the file is built in a temporary directory
    of this process, with one warning.

    Raises:
        OSError: there is no room there either.
    """
    name = Path(key[:2]) / f"{key}{suffix}"
    if not rebuild and _intact(kept := cache_directory() / name):
        return kept
    try:
        return _built(cache_directory() / name, build)
    except OSError as e:
        if e.errno not in FULL:
            raise
    aside = _aside(str(cache_directory())) / name
    return aside if not rebuild and _intact(aside) else _built(aside, build)


FULL = (errno.ENOSPC, errno.EDQUOT)


@cache
def _aside(full: str) -> Path:
    """Where entries of this process go whose own directory is full."""
    made = Path(tempfile.mkdtemp(prefix="normforge-"))
    warnings.warn(
        f"the disk of {full} is full: compiled kernels go to {made} and are not kept; make room, or name another "
        "directory in NORMFORGE_CACHE",
        stacklevel=2,
    )
    return made


def _built(path: Path, build: Callable[[Path], None]) -> Path:
    """Build a file and its checksum, and move both into place."""
    check = path.with_suffix(".sum")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=path.suffix)
    os.close(handle)
    fresh = Path(name)
    try:
        build(fresh)
        mark = fresh.with_suffix(".sum")
        mark.write_text(_checksum(fresh))
        fresh.replace(path)
        mark.replace(check)
    finally:
        fresh.unlink(missing_ok=True)
    return path


def _checksum(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


def _intact(path: Path) -> bool:
    try:
        return path.with_suffix(".sum").read_text() == _checksum(path)
    except OSError:
        return False
