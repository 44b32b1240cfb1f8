"""The authors' published weights: a pickled tree of arrays, read without running anything that is in the file.

The files (google-deepmind/deepmind-research, `nfnets/`) hold a dict of dicts of arrays by haiku's names of modules and
parameters. A pickle may name any function to be called; here no function of numpy or of anything else is called, but
stand-ins that take down shapes and bytes.
"""

from __future__ import annotations

import functools
import pickle
import warnings
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from normforge.errors import OptionError, UnknownNameError, described
from normforge.nn.nfnets.blocks import NormFreeBlock, SqueezeExcite
from normforge.nn.nfnets.network import NormFreeNet

Array = npt.NDArray[Any]
Tree = Mapping[str, Mapping[str, Any]]
N = TypeVar("N", bound=NormFreeNet)

_NAMED = 4  # names in a message; the rest are counted


def load_pretrained(model: N, source: str | PathLike[str] | Tree) -> N:
    """Fill an NFNet or NF-ResNet with weights that the authors published, or that their code has trained.

    Args:
        model: of `nfnet` or `nf_resnet`, best with `gamma="authors"`, which the weights were trained with. Without a
            classifier it takes what comes before.
        source: a file of theirs, such as F0_haiku.npz, which in spite of its name is a pickle; or the tree itself, a
            dict of modules of dicts of arrays.

    Returns:
        The model.

    Raises:
        UnknownNameError: there is no such file.
        OptionError: the file holds anything but dicts and arrays of numbers, of which nothing is run; or its entries
            are not those of the model. The model is then as it was.
    """
    tree, where = (source, "the tree") if isinstance(source, Mapping) else (_read(source), str(source))
    given, wanted = _flat(tree, where), _entries(model)
    if not model.num_classes:
        given = {name: array for name, array in given.items() if not name.startswith("linear/")}
    missing, extra = [n for n in wanted if n not in given], [n for n in given if n not in wanted]
    states = {entry.name: entry.convert(given[n]) for n, entry in wanted.items() if n in given}
    have = model.state_dict()
    wrong = [
        f"{n} {given[n].shape}" for n, entry in wanted.items()
        if n in given and states[entry.name].shape != tuple(have[entry.name].shape)
    ]  # fmt: skip
    problems = (("has no", missing), ("has, beyond the network's,", extra), ("has in other shapes", wrong))
    said = [f"{what} {_listed(names)}" for what, names in problems if names]
    if said:
        raise OptionError(f"{where} is not of this network: it {', and '.join(said)}")
    if model.config.gamma != "authors":
        warnings.warn(
            "these weights were trained with the authors' γ: build the network with gamma='authors'", stacklevel=2
        )
    native = {name: np.array(a, a.dtype.newbyteorder("=")) for name, a in states.items()}
    model.load_state_dict({name: torch.from_numpy(a) for name, a in native.items()})
    return model


def _read(path: str | PathLike[str]) -> Tree:
    """What is in a file of theirs, arrays as stand-ins."""
    try:
        with Path(path).open("rb") as file:
            found = _Reader(file).load()
    except OSError as e:
        raise UnknownNameError(f"cannot read {path}: {e.strerror or e}") from None
    except OptionError as e:
        raise OptionError(f"{path} is refused: {e}") from None
    except Exception as e:  # a broken pickle raises anything
        raise OptionError(f"{path} is no pickle of dicts and arrays, or is cut off: {e or type(e).__name__}") from None
    if not isinstance(found, dict):
        raise OptionError(f"{path} holds {described(found)} where a dict of the network's modules is expected")
    return found


class _Dtype:
    """Stands for numpy.dtype; `found` is one of numbers, by its name and byte order alone."""

    def __init__(self, name: Any = None, *_: Any) -> None:
        self.found = np.dtype(name) if isinstance(name, str) else None
        if self.found is None or self.found.kind not in "fiu" or self.found.hasobject:
            raise OptionError(f"it has an array of {name!r}, which are no numbers")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1]
        if self.found is not None and order in (">", "<"):
            self.found = self.found.newbyteorder(order)


class _Array:
    """Stands for numpy.ndarray while it is being read; `value` is made of plain bytes."""

    value: Array | None = None

    def __init__(self, *_: Any) -> None:
        pass

    def fill(self, raw: Any, dtype: Any, shape: Any, order: str) -> _Array:
        """What bytes and a shape make."""
        if not isinstance(raw, bytes | bytearray) or not isinstance(dtype, _Dtype):
            raise OptionError("it has an array that is not made of bytes")
        self.value = np.frombuffer(raw, dtype.found).reshape(shape, order="F" if order == "F" else "C")
        return self

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state
        self.fill(raw, dtype, shape, "F" if fortran else "C")


def _from_buffer(raw: Any, dtype: Any, shape: Any, order: str, axes: tuple[int, ...] | None = None) -> _Array:
    made = _Array().fill(raw, dtype, shape, order)
    if order == "K" and axes is not None and made.value is not None:
        made.value = made.value.transpose(axes)
    return made


def _from_latin1(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise OptionError("it encodes what is not text of bytes")
    return text.encode("latin1")


_ARRAYS: dict[str, Callable[..., Any]] = {
    "multiarray._reconstruct": _Array,
    "multiarray.scalar": lambda dtype, raw: _Array().fill(raw, dtype, (), "C"),
    "numeric._frombuffer": _from_buffer,
}
_ADMITTED: dict[str, Callable[..., Any]] = {
    "numpy.ndarray": _Array,
    "numpy.dtype": _Dtype,
    "_codecs.encode": _from_latin1,
    "builtins.dict": dict,
    "collections.OrderedDict": dict,
    # Moved in numpy 2.
    **{f"numpy.{core}.{name}": stand_in for core in ("core", "_core") for name, stand_in in _ARRAYS.items()},
}


class _Reader(pickle.Unpickler):
    """Admits what numpy's arrays are pickled by, and dicts; for each there is a stand-in."""

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full not in _ADMITTED:
            raise OptionError(f"it asks for {full}, and only dicts and arrays are read; nothing was run")
        return functools.partial(_ADMITTED[full])  # a new one each time: a pickle may set what it is given


def _flat(tree: Tree, where: str) -> dict[str, Array]:
    """The arrays of a tree, by 'module/parameter' without the outermost module and haiku's '~'."""
    flat: dict[str, Array] = {}
    for module, entries in tree.items():
        if not isinstance(module, str) or not isinstance(entries, Mapping):
            raise OptionError(f"{where} has {described(entries)} where a dict of one module's arrays is expected")
        path = [part for part in module.split("/") if part != "~"][1:]
        for name, value in entries.items():
            array = value.value if isinstance(value, _Array) else value
            if not isinstance(array, np.ndarray | np.number) or array.dtype.kind not in "fiu":
                raise OptionError(f"{where} has {described(value)} in {module} where an array of numbers is expected")
            flat["/".join((*path, str(name)))] = np.asarray(array)
    return flat


class _Entry:
    """A parameter of ours and how an array of theirs becomes it."""

    def __init__(self, name: str, axes: tuple[int, ...] | None = None, points: bool = False) -> None:
        self.name, self.axes, self.points = name, axes, points

    def convert(self, array: Array) -> Array:
        """Theirs in the layout of ours; as it is where the number of axes is another."""
        if self.axes is None or array.ndim != len(self.axes):
            return array
        turned = array.transpose(self.axes)
        return turned[..., None, None] if self.points else turned


def _entries(model: NormFreeNet) -> dict[str, _Entry]:
    """The parameters of a network by the names of their arrays."""
    made: dict[str, _Entry] = {}

    def conv(theirs: str, ours: str) -> None:
        made[f"{theirs}/w"] = _Entry(f"{ours}.weight", (3, 2, 0, 1))  # height, width, in, out
        made[f"{theirs}/gain"], made[f"{theirs}/bias"] = _Entry(f"{ours}.gain"), _Entry(f"{ours}.bias")

    def linear(theirs: str, ours: str, points: bool = False) -> None:
        made[f"{theirs}/w"] = _Entry(f"{ours}.weight", (1, 0), points)
        made[f"{theirs}/b"] = _Entry(f"{ours}.bias")

    deep = len(model.config.stem) > 1
    for i in range(len(model.config.stem)):
        conv(f"stem_conv{i}" if deep else "initial_conv", f"stem.conv{i + 1}" if deep else "stem.conv")
    blocks = [(name, m) for name, m in model.named_modules() if isinstance(m, NormFreeBlock)]
    for i, (name, block) in enumerate(blocks):
        above = ("nf_block" if deep else "nf_res_block") + (f"_{i}" if i else "")
        for theirs, ours in _CONVOLUTIONS.items():
            if _has(block, ours):
                conv(f"{above}/{theirs}", f"{name}.{ours}")
        if isinstance(block.attn_last, SqueezeExcite):
            linear(f"{above}/squeeze_excite/linear", f"{name}.attn_last.fc1", points=True)
            linear(f"{above}/squeeze_excite/linear_1", f"{name}.attn_last.fc2", points=True)
        if block.skipinit_gain is not None:
            made[f"{above}/skip_gain"] = _Entry(f"{name}.skipinit_gain")
    if model.config.head:
        conv("final_conv", "final_conv")
    if isinstance(model.head.fc, nn.Linear):
        linear("linear", "head.fc")
    unknown = set(model.state_dict()) - {entry.name for entry in made.values()}
    if unknown:
        raise OptionError(f"the authors have no network with {_listed(sorted(unknown))}: theirs are of rule 'paper'")
    return made


_CONVOLUTIONS = {
    "conv0": "conv1", "conv1": "conv2", "conv1b": "conv2b", "conv2": "conv3", "conv_shortcut": "downsample.conv",
}  # fmt: skip


def _has(block: NormFreeBlock, name: str) -> bool:
    return any(parameter.startswith(f"{name}.") for parameter in block.state_dict())


def _listed(names: list[str]) -> str:
    rest = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")
