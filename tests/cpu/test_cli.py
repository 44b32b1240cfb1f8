"""The command line: what it prints, and that each mistake is one sentence and exit code 2, never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import normforge as nf
from normforge.cli.main import main


def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one command."""
    monkeypatch.setattr(sys, "argv", ["normforge", *arguments])
    code = 0
    try:
        main()
    except SystemExit as e:
        code = int(e.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


MISTAKES = [
    (["check", "evonorm-zz"], "did you mean"),
    (["check", "x * sigmod(x)"], "did you mean 'sigmoid'"),
    (["check", "x +"], "expected"),
    (["check", "std[w,q](x)"], "expected one of"),
    (["check", "missing.json"], "missing.json"),
    (["check", "nowhere#3"], "nowhere"),
    (["check", "./"], "is a folder"),
    (["check", "gn-silu", "--static", "--plot", "unused"], "leave out --static"),
    (["check", "gn-silu", "--static", "--run", "unused"], "leave out --static"),
    (["check", "gn-silu", "--run", "unused"], "unused"),
    (["check", "gn-silu", "--plot", "unused/a.png"], "cannot draw"),
    (["check", "gn-silu", "--plot", "unused.xyz"], "cannot draw"),
    (["explain", "gn-silu", "--shape", "a,b"], "--shape"),
    (["explain", "gn-silu", "--shape", "4"], "shape"),
    (["explain", "gn-silu", "--dtype", "int8"], "int8"),
    (["explain", "gn-silu", "--channel-dim", "2"], "1 or -1"),
    (["explain", "gn-silu", "--shape", "2,64,8,8", "--groups", "7"], "does not divide 64"),
    (["check", "a + b"], "the input is x; declare others"),
    (["bench", "gn-silu", "--shape", "1000000,100,1000,1000"], "more memory than there is, 400000.0 GB a tensor"),
    (["bench", "gn-silu", "--shape", "4,0"], "positive"),
    (["bench", "gn-silu", "--device", "tpu"], "tpu"),
    (["bench", "gn-silu", "--shape", "4,8", "--layout", "nhwc"], "channels-last"),
    (["compile", "gn-silu", "--emit", "cuda"], "cuda"),
    (["compile", "gn-silu", "--emit", "triton", "--dtype", "float64"], "float32"),
    (["convert", "resnet188", "evonorm-s0"], "did you mean 'resnet18"),
    (["convert", "resnet18", "evonorm-zz"], "did you mean"),
    (["convert", "resnet18", "bn-relu", "--linear", "some"], "linear is one of"),
    (["export", "evonorm-zz", "unused"], "did you mean"),
    (["export", "gn-silu", "unused/a.py"], "cannot write"),
    (["report", "nowhere"], "nowhere"),
    (["search", "--preset", "nosuch", "--out", "unused"], "nosuch"),
    (["estimate", "--set", "recipe.stepz=3"], "did you mean 'recipe.steps'"),
    (["layers", "--colour"], "--colour"),
]


@pytest.mark.parametrize(("arguments", "phrase"), MISTAKES, ids=[" ".join(a) for a, _ in MISTAKES])
def test_mistakes(
    arguments: list[str], phrase: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(monkeypatch, capsys, *arguments)
    assert code == 2 and phrase in err and "Traceback" not in err + out
    assert not Path("unused").exists()


def test_check_exit_codes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in nf.layers:
        assert call(monkeypatch, capsys, "check", name)[0] == 0
    code, out, _ = call(monkeypatch, capsys, "check", "mean[w,h](x)")
    assert code == 1 and "refused by type" in out
    code, out, _ = call(monkeypatch, capsys, "check", "x * square(x)")
    assert code == 1 and "refused by probing" in out and "then not finite" in out
    code, out, _ = call(monkeypatch, capsys, "check", "x * square(x)", "--static")
    assert code == 0 and "no static check" in out and "convolutions" not in out


def test_check_says_what_a_layer_is_like(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = call(monkeypatch, capsys, "check", "(x - mean[w,h](x)) / std[w,h](x) * gamma + beta")
    for words in ("mean[w,h], std[w,h] (1 levels)", "scale-invariant", "shift-invariant", "b,w,h, w,h", "yes"):
        assert words in out
    _, out, _ = call(monkeypatch, capsys, "check", "silu(x)", "--static")
    assert "no *" in out and "* by numbers" in out


def test_check_says_what_a_layer_does(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = call(monkeypatch, capsys, "check", "gelu((x - mean[w,h,c/g](x)) / std[w,h,c/g](x))")
    assert "a signal keeps its size" in out and "it bends" in out
    assert "nearest known layer by behaviour: gn-" in out and "the same up to a bend" in out
    _, out, _ = call(monkeypatch, capsys, "check", "relu(x)")
    assert "grows with x" in out
    _, out, _ = call(monkeypatch, capsys, "check", "gn-relu")
    assert "gn-relu, cosine 1.000: the same function\nand then: gn-silu" in out


def test_check_draws(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for name in ("a.png", "a.svg"):
        code, out, _ = call(monkeypatch, capsys, "check", "gn-silu", "--plot", str(tmp_path / name))
        assert code == 0 and "drawn into" in out and (tmp_path / name).stat().st_size > 5000
    code, out, _ = call(monkeypatch, capsys, "check", "x / 0", "--plot", str(tmp_path / "b.png"))
    assert code == 1 and "nothing to draw" in out and not (tmp_path / "b.png").exists()


def test_a_comment_is_no_candidate() -> None:
    for text in ("x * gamma # as in runs/demo#17", "x * gamma  #best", "x * gamma\n#17"):
        assert nf.load(text) == nf.parse("x * gamma")


def test_a_formula_longer_than_a_file_name() -> None:
    text = "x" + " + x" * 300 + " * gamma"
    assert nf.load(text) == nf.parse(text)


def test_layers_explain_compile(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    _, out, _ = call(monkeypatch, capsys, "layers")
    assert all(name in out for name in nf.layers)
    code, out, _ = call(monkeypatch, capsys, "explain", "gn-silu", "--shape", "128,64,16,16", "--target", "c", "--ir")
    assert code == 0 and "double backward" in out and "MB" in out and "return d.x=" in out
    code, out, _ = call(monkeypatch, capsys, "compile", "evonorm-s0", "--out", str(tmp_path))
    assert code == 0 and sorted(p.name for p in tmp_path.iterdir()) == ["order0.c", "order1.c", "order2.c"]
    file = tmp_path / "layer.json"
    file.write_text(nf.layers["frn-tlu"].to_json())
    code, out, _ = call(monkeypatch, capsys, "check", str(file))
    assert code == 0 and "rms[w,h](x)" in out


def test_explain_counts_bytes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """bn-relu at 2 x 64 x 8 x 8: S = 8192 elements; gn-silu at 128 x 64 x 56 x 56, too large for any cache: one
    statistic has 128 x 32 values, and partial sums at least one a row of 3136."""
    code, out, _ = call(monkeypatch, capsys, "explain", "bn-relu", "--shape", "2,64,8,8", "--target", "c")
    found = [line.strip() for line in out.splitlines() if line.startswith("  ") and "sweep " not in line]
    statistics = "saved.0 (mean over b,w,h) 256 B, saved.1 (var over b,w,h) 256 B"
    kept = "and a workspace that is kept from call to call"
    launches = [line for line in found if line.startswith("launch")]
    assert len(launches) == 3 and all(line.startswith("launch 1, call: all sweeps") for line in launches)
    assert code == 0 and [line for line in found if line not in launches] == [
        # Small: two parameters, two running and two saved statistics.
        "moves 65.5 kB of full tensors, 32.8 kB each: 1.00 times the floor, 2 S = 65.5 kB; 1.5 kB of small ones",
        f"saves x 32.8 kB, gamma 256 B, beta 256 B, {statistics}; 33.8 kB in all",
        f"allocates 33.8 kB of outputs, {kept}",
        "moves 98.3 kB of full tensors, 32.8 kB each: 1.00 times the floor, 3 S = 98.3 kB; 1.5 kB of small ones",
        f"saves x 32.8 kB, gamma 256 B, beta 256 B, ct.y 32.8 kB, {statistics}; 66.6 kB in all",
        f"allocates 33.3 kB of outputs, {kept}",
        "moves 163.8 kB of full tensors, 32.8 kB each: 1.00 times the floor, 5 S = 163.8 kB; 2.0 kB of small ones",
        "saves x 32.8 kB, gamma 256 B, beta 256 B, ct.y 32.8 kB, ct.d.x 32.8 kB, ct.d.gamma 256 B, ct.d.beta 256 B, "
        f"{statistics}; 99.8 kB in all",
        f"allocates 66.0 kB of outputs, {kept}",
    ]
    for dtype, tensor in (("bf16", "51.4 MB"), ("fp16", "51.4 MB"), ("f32", "102.8 MB"), ("bfloat16", "51.4 MB")):
        code, out, _ = call(
            monkeypatch, capsys, "explain", "gn-silu", "--shape", "128,64,56,56", "--dtype", dtype, "--target", "triton"
        )
        words = f"saves x {tensor}, gamma 256 B, beta 256 B, saved.0 (mean over w,h,c/g) 16.4 kB, saved.1 (var over "
        assert code == 0 and words in out and f"full tensors, {tensor} each" in out
        assert [line.split(":")[0] for line in out.splitlines() if "sums; slab" in line or "sum; slab" in line] == [
            "forward", "backward", "double backward",
        ]  # fmt: skip
    out = call(monkeypatch, capsys, "explain", "gn-silu", "--target", "triton")[1]
    assert "the floor" not in out and "  launch 1, 0_slabs: slabs {b,g} by rows, programs = ceil(N * G / SLABS)" in out


def test_explain_names_its_target(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    first = call(monkeypatch, capsys, "explain", "gn-silu")[1].splitlines()[0]
    assert first.startswith(
        "triton, float32, nchw (there is a GPU" if torch.cuda.is_available() else "c, float32, nchw ("
    )
    tokens = call(monkeypatch, capsys, "explain", "rmsnorm", "--shape", "8,16,64", "--channel-dim", "-1")[1]
    pixels = call(monkeypatch, capsys, "explain", "rmsnorm", "--shape", "8,64,16", "--layout", "nhwc")[1]
    assert tokens == pixels and "nhwc" in tokens.splitlines()[0]
    shaped = ("explain", "gn-silu", "--shape", "8,64,16,16", "--target", "c")
    assert "saved.0 (mean over w,h,c/g) 128 B" in call(monkeypatch, capsys, *shaped, "--groups", "4")[1]
    assert "saved.0 (mean over w,h,c/g) 1.0 kB" in call(monkeypatch, capsys, *shaped)[1]


INTERRUPTED = """
import os, signal, sys, threading, torch
import normforge.kernels.timing
from normforge.cli.main import main

signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a shell ignores it for what it runs behind
sys.argv = ["normforge", "bench", "evonorm-s0", "--seconds", "60"]
for after in (2.0, *map(float, os.environ["AGAIN"].split())):
    threading.Timer(after, os.kill, (os.getpid(), signal.SIGINT)).start()
main()
"""


@pytest.mark.parametrize("again", ["", "2.0 2.001 2.01 2.1 2.3"])
def test_one_line_for_an_interrupt(again: str) -> None:
    """Ctrl-C, once and several times, in a process of its own that is at work."""
    environment = os.environ | {"AGAIN": again}
    command = [sys.executable, "-c", INTERRUPTED]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert ran.returncode == 130 and "Traceback" not in ran.stdout + ran.stderr
    assert ran.stderr.splitlines()[-1] == "normforge: stopped"


def test_plan_is_called_estimate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, capsys, "plan", "--help")[0] == 0
    assert "  estimate " in (shown := call(monkeypatch, capsys, "--help")[1]) and "  plan " not in shown
    code, _, err = call(monkeypatch, capsys, "plan", "--preset", "nosuch")
    assert code == 2 and "normforge estimate" in err and "no preset 'nosuch'" in err


def test_doctor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(monkeypatch, capsys, "doctor")
    assert code == 0 and "largest error" in out


def test_bench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", "gn-silu", "--shape", "2,8,4,4", "--device", "cpu", "--seconds", "0.01"]
    code, out, _ = call(monkeypatch, capsys, *arguments)
    assert code == 0
    for name in ("forward+backward", "double backward", "eager"):
        assert name in out


def test_convert_shows_what_a_model_becomes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = call(monkeypatch, capsys, "convert", "resnet18", "evonorm-s0", "--where", "layer4.*")
    lines = out.splitlines()
    assert code == 0 and len(lines) == 22
    assert lines[1].split()[:4] == ["bn1", "BatchNorm2d", "-", "left"] and "not selected" in lines[1]
    assert "5 of 20 norms replaced: 3 by x * gamma + beta, 2 by evonorm-s0 (by a symbolic trace)" in lines[-1]


def test_export_writes_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, _ = call(monkeypatch, capsys, "export", "evonorm-s0", str(tmp_path))
    assert code == 0 and Path(out.strip()) == tmp_path / "evonorm_s0.py"
    assert "class EvonormS0" in (tmp_path / "evonorm_s0.py").read_text()
