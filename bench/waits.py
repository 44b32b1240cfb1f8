"""How long a cooperative launch takes when its programs wait for each other, from how long an item takes alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from normforge.codegen.triton.division import Division, Tiled


def cycles(
    division: Division,
    items: Callable[[Tiled, int], int],
    lives: Mapping[int, float],
    *,
    tiles: int,
    grid: int,
    beside: float,
    poll: float,
    flag: float,
    all_wait: bool,
) -> float:
    """Cycles until the last program has passed the last tile.

    Args:
        division: the stages.
        items: of a stage in a tile.
        lives: cycles of one item, by number of stage.
        tiles, grid: how many, and how many programs.
        beside: cycles of a stage without items. poll: of one look at a counter.
        flag: until what one program counts is seen by others.
        all_wait: programs wait before a stage of which they have no item, too, and are waited for.
    """
    time, first = np.zeros(grid), np.arange(grid)
    ready: dict[tuple[int, int], float] = {}
    for step in range(tiles + max(t.lag for t in division.tiled)):
        for tiled in division.tiled:
            tile = step - tiled.lag
            if not 0 <= tile < tiles:
                continue
            count = items(tiled, tile)
            mine = np.maximum(-(-(count - first) // grid), 0)
            here = (mine > 0) | all_wait
            if tiled.after >= 0:
                time = np.where(here, np.maximum(time + poll, ready[tiled.after, tile] + poll), time)
            time += mine * lives.get(tiled.number, 0.0) + beside
            ready[tiled.number, tile] = float(time[here].max()) + flag
            first = (first - count) % grid
    return float(time.max())
