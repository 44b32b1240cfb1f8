"""The command line. Mistakes are one sentence on standard error and exit code 2, never a traceback."""

from __future__ import annotations

import signal as signals
import sys
import threading
from typing import Annotated

import typer

from normforge import __version__
from normforge.cli.bench import bench
from normforge.cli.check import check
from normforge.cli.compile import compile
from normforge.cli.convert import convert
from normforge.cli.doctor import doctor
from normforge.cli.estimate import estimate, plan
from normforge.cli.explain import explain
from normforge.cli.export import export
from normforge.cli.layers import layers
from normforge.cli.report import report
from normforge.cli.search import search
from normforge.cli.show import show
from normforge.cli.signal import signal
from normforge.cli.train import train
from normforge.cli.transfer import transfer
from normforge.errors import NormforgeError

app = typer.Typer(
    name="normforge",
    help="Normalization-activation layers, compiled and discovered. A LAYER is a name (normforge layers), a formula, "
    "a file, or a search result such as runs/demo#17.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        print(f"normforge {__version__}")
        raise typer.Exit


COMMANDS = (
    layers, check, explain, compile, convert, bench, search, estimate, report, show, export, signal, train, transfer,
    doctor,
)  # fmt: skip
for command in COMMANDS:
    app.command()(command)
app.command("plan", hidden=True)(plan)


STOPPED = 130  # what shells give to what Ctrl-C has ended


def _interrupt(number: int, frame: object) -> None:
    """The first Ctrl-C ends the command; another finds a process that is ending, and is none of its business."""
    signals.signal(number, signals.SIG_IGN)
    raise KeyboardInterrupt


def _stopped() -> None:
    print("normforge: stopped", file=sys.stderr)
    sys.exit(STOPPED)


def main() -> None:
    """Entry point: normforge's own errors become one sentence and their exit code."""
    usual = signals.getsignal(signals.SIGINT) is signals.default_int_handler
    if usual and threading.current_thread() is threading.main_thread():
        signals.signal(signals.SIGINT, _interrupt)
    try:
        app()
    except NormforgeError as e:
        print(f"normforge: {e}", file=sys.stderr)
        sys.exit(e.exit_code)
    except KeyboardInterrupt:
        _stopped()
    except SystemExit as e:
        if e.code == STOPPED:  # typer's word for Ctrl-C
            _stopped()
        raise
    except BrokenPipeError:
        sys.exit(0)
    finally:
        if signals.getsignal(signals.SIGINT) is _interrupt:
            signals.signal(signals.SIGINT, signals.default_int_handler)
