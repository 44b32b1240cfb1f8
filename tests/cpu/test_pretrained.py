"""The authors' files of weights: what is read, what is refused, and that nothing in them runs."""

from __future__ import annotations

import io
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import nfnets_reference as ref
import numpy as np
import pytest
import torch
from test_nfnets import GELU, blocks_of, equal, noise, small

from normforge.errors import OptionError, UnknownNameError
from normforge.nn import load_pretrained, nf_resnet, nfnet

KIND = ref.small_kind(GELU)


def arrays() -> dict[str, dict[str, Any]]:
    return ref.random_tree(KIND, classes=10)


def written(path: Path, what: Any, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(what, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_files(protocol: int, tmp_path: Path) -> None:
    """Numbers of both byte orders, arrays of both orders of axes, scalars; and haiku's separators or not."""
    tree: Any = OrderedDict(arrays())
    conv = tree["NFNet/~/final_conv"]
    conv["w"] = np.asfortranarray(conv["w"])
    conv["gain"] = conv["gain"].astype(">f8")
    tree["NFNet/~/nf_block_1"] = {"skip_gain": np.float32(0.75)}
    tree["NFNet/linear"] = tree.pop("NFNet/~/linear")
    model = load_pretrained(small().double(), written(tmp_path / "f.npz", tree, protocol)).eval()
    tree["NFNet/~/linear"] = tree.pop("NFNet/linear")
    read = {m: {n: torch.tensor(np.asarray(a, np.float64)) for n, a in e.items()} for m, e in tree.items()}
    x = noise(2, 3, 32, 32)
    equal(model(x), ref.forward(KIND, read, x), "logits", 96)
    assert float(blocks_of(model)[1].skipinit_gain.detach()) == 0.75


def test_names_of_older_numpy(tmp_path: Path) -> None:
    data = pickle.dumps(arrays(), protocol=2)
    for old, new in ((b"numpy._core.", b"numpy.core."), (b"numpy.core.", b"numpy._core.")):
        (tmp_path / "f").write_bytes(data.replace(old, new))
        load_pretrained(small(), tmp_path / "f")


def test_a_whole_network(tmp_path: Path) -> None:
    """Every name of an NF-ResNet-50, from float32 arrays in a file."""
    kind = ref.resnet_kind((3, 4, 6, 3), GELU)
    tree = {m: {n: a.astype("f4") for n, a in e.items()} for m, e in ref.random_tree(kind).items()}
    model = load_pretrained(nf_resnet(50, gamma="authors"), written(tmp_path / "f", tree, 5))
    have = model.state_dict()
    for (module, entry), ours in zip(ref.names(kind), ref.our_names(kind), strict=True):
        assert torch.equal(have[ours], ref.to_ours(torch.from_numpy(tree[module][entry]), have[ours].shape)), ours


class Attack:
    def __init__(self, call: Any, *args: Any) -> None:
        self.how = call, args

    def __reduce__(self) -> Any:
        return self.how


def test_nothing_runs(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    attacks = (
        (Attack(os.system, f"touch {mark}"), "system"),
        (Attack(eval, f"open({str(mark)!r}, 'w')"), "builtin.*eval"),
        (Attack(getattr, dict, "keys"), "builtin.*getattr"),
        (Attack(io.open, str(mark), "w"), "open"),
        (Attack(np.fromfile, str(mark)), "fromfile"),
        (np.array([Attack(os.system, f"touch {mark}")], object), "O8|system"),
        (np.array(["text"]), "U4"),
        (np.zeros(2, [("a", "f4")]), "V4"),
        (torch.zeros(2), "torch"),
        ({1, 2}, "set"),
        ("text", "where an array of numbers is expected"),
        (b"x", "where an array of numbers is expected"),
    )
    for protocol in (2, 4, 5):
        for attack, phrase in attacks:
            tree = arrays()
            tree["NFNet/~/linear"]["b"] = attack  # type: ignore[assignment]
            model = small()
            before = {n: p.clone() for n, p in model.state_dict().items()}
            with pytest.raises(OptionError, match=phrase) as raised:
                load_pretrained(model, written(tmp_path / "f", tree, protocol))
            assert "\n" not in str(raised.value) and not mark.exists()
            assert all(torch.equal(before[n], p) for n, p in model.state_dict().items())


def test_forged_arrays(tmp_path: Path) -> None:
    """Shapes that are not those of the bytes; types that are pointers; arguments that are no bytes."""
    whole = pickle.dumps({"NFNet": {"w": np.arange(6, dtype="f8").reshape(2, 3)}}, protocol=2)
    for old, new in ((b"K\x02K\x03\x86", b"K\x7fK\x7f\x86"), (b"f8", b"O8"), (b"latin1", b"rot_13")):
        assert old in whole
        (tmp_path / "f").write_bytes(whole.replace(old, new))
        with pytest.raises(OptionError):
            load_pretrained(small(), tmp_path / "f")


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="nowhere"):
        load_pretrained(small(), tmp_path / "nowhere")
    whole = pickle.dumps(arrays())
    for content in (b"", b"text", whole[: len(whole) // 2], pickle.dumps([1])):
        (tmp_path / "f").write_bytes(content)
        with pytest.raises(OptionError, match=r"no pickle|holds a list"):
            load_pretrained(small(), tmp_path / "f")
    for tree in ({"NFNet": 1}, {1: {}}):
        with pytest.raises(OptionError, match="one module's arrays"):
            load_pretrained(small(), tree)  # type: ignore[arg-type]


def test_entries_that_do_not_fit() -> None:
    tree = arrays()
    del tree["NFNet/~/stem_conv1"]["gain"]
    tree["NFNet/~/more"] = {"w": np.zeros(1)}
    tree["NFNet/~/linear"]["w"] = np.zeros((64, 11))
    with pytest.raises(OptionError) as raised:
        load_pretrained(small(), tree)
    for phrase in ("no stem_conv1/gain", "beyond the network's, more/w", r"in other shapes linear/w (64, 11)"):
        assert phrase in str(raised.value)
    with pytest.raises(OptionError, match=r"and \d+ more"), torch.device("meta"):
        load_pretrained(nfnet("nfnet_f0"), arrays())
    with pytest.raises(OptionError, match="theirs are of rule 'paper'"), torch.device("meta"):
        load_pretrained(nfnet("eca_nfnet_l0"), arrays())


def test_without_a_classifier() -> None:
    model = small()
    model.reset_classifier(0)
    load_pretrained(model, arrays())
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 64)


def test_gamma_of_the_weights() -> None:
    with pytest.warns(UserWarning, match="gamma='authors'"):
        load_pretrained(small(gamma="exact"), arrays())
