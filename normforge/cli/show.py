"""`normforge show`: the life of a candidate."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console


def show(
    reference: Annotated[str, typer.Argument(metavar="RUN[#N]", help="runs/demo#17, runs/demo#best, or a run.")],
) -> None:
    """Print what became of a candidate and where it came from; or the best ten of a run."""
    from normforge.search.reports.lineage import show as print_candidate

    print_candidate(reference, Console())
