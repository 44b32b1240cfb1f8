"""The suite for GPUs, where there is none: how many kernels it compiles, and that its cases can tell wrong ones."""

from __future__ import annotations

import pytest
from cases import LAYERS, TABLE, Case, choose, table
from derivatives import check, draw, evaluator, expected, mutations
from launched import suite
from stand_in import kernels
from steps import MUTATED, mutated

MOST_KERNELS = 900


def test_the_suite_compiles_few_kernels() -> None:
    """Without its search, whose networks add some tens."""
    found = {kernel for request in suite() for kernel in kernels(request)}
    assert 500 < len(found) <= MOST_KERNELS


def unnoticed(layer: str, order: int) -> list[str]:
    """Terms of a derivative that could be missing from its kernels without any case of the suite failing."""
    cases = [c for c in table() if (c.layer, c.order) == (layer, order)]
    drawn = {}
    left = []
    for graph in mutations(cases[0].program.graph):
        for case in sorted(cases, key=lambda c: c.dtype != "float32"):
            if case not in drawn:
                values = draw(case)
                drawn[case] = values, expected(case, values)
                check(case, evaluator(case, case.program.graph, values), *drawn[case])  # what is right passes
            values, want = drawn[case]
            try:
                check(case, evaluator(case, graph, values), values, want)
            except AssertionError:
                break
        else:
            left.append(str(graph))
    return left


@pytest.mark.parametrize(
    ("layer", "order"), [("gn-silu", 1), ("bn-relu", 2), ("layernorm-gelu", 1), ("nested-batch", 0)]
)
def test_a_missing_term_is_noticed(layer: str, order: int) -> None:
    assert not unnoticed(layer, order)


@pytest.mark.parametrize("case", MUTATED, ids=lambda case: case.kind)
def test_what_the_suite_mutates_is_noticed(case: Case) -> None:
    values = draw(case)
    want = expected(case, values)
    assert case.possible
    with pytest.raises(AssertionError, match="error"):
        check(case, evaluator(case, mutated(case).graph, values), values, want)


@pytest.mark.slow
@pytest.mark.parametrize("order", range(3))
@pytest.mark.parametrize("layer", LAYERS)
def test_every_missing_term_is_noticed(layer: str, order: int) -> None:
    assert not unnoticed(layer, order)


@pytest.mark.slow
def test_the_table_is_what_is_chosen() -> None:
    """`python tests/gpu/cases.py` writes it again."""
    assert choose() == table(), f"{TABLE} is out of date"


def test_every_case_is_possible() -> None:
    assert all(case.possible for case in table())
