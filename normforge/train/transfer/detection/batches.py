"""Batches of scenes, drawn without end; where a stream of them stands is one number."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np

from normforge.streams import stream
from normforge.train.transfer.detection.scene import Scene, Scenes

_AHEAD = 3  # batches that threads read ahead


class SceneBatches:
    """Batches of a part, epoch by epoch in random order; what does not fill a batch is left out.

    A batch depends on the scenes, the seed and its number alone: not on the number of threads, nor on where a training
    was interrupted.

    Args:
        scenes: to train on; at least one.
        batch: scenes of a batch; at most those that there are.
        seed: of order and mirroring.
        flip: mirror at random.
        threads: that read ahead; 0 reads when asked.
    """

    def __init__(self, scenes: Scenes, batch: int, seed: int, flip: bool, threads: int = 0) -> None:
        self._scenes, self._seed, self._flip = scenes, seed, flip
        self.batch = min(batch, len(scenes))
        self._threads, self._pool = threads, None if not threads else ThreadPoolExecutor(threads)
        self._ahead: deque[list[Future[Scene]]] = deque()
        self._orders: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._step = 0

    def next(self) -> list[Scene]:
        """The next batch."""
        step = self._step
        if self._pool is None:
            scenes = [self._scene(index, flip) for index, flip in self._drawn(step)]
        else:
            while len(self._ahead) < _AHEAD:
                drawn = self._drawn(step + len(self._ahead))
                self._ahead.append([self._pool.submit(self._scene, *one) for one in drawn])
            scenes = [future.result() for future in self._ahead.popleft()]
        self._step += 1
        return scenes

    def _drawn(self, step: int) -> list[tuple[int, bool]]:
        """Which scenes are in a batch, and which of them are mirrored."""
        epoch, part = divmod(step, len(self._scenes) // self.batch)
        order, mirrored = self._epoch(epoch)
        chosen = order[part * self.batch : (part + 1) * self.batch]
        return [(int(i), bool(self._flip and mirrored[i])) for i in chosen]

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The order of an epoch, and which scenes are mirrored in it; that of two epochs is kept, for reading ahead."""
        if epoch not in self._orders:
            for old in [e for e in self._orders if e != epoch - 1]:
                del self._orders[old]
            rng = stream(self._seed, "scenes", epoch)
            order = rng.permutation(len(self._scenes))
            self._orders[epoch] = order, rng.random(len(self._scenes)) < 0.5
        return self._orders[epoch]

    def _scene(self, index: int, flip: bool) -> Scene:
        scene = self._scenes[index]
        return mirrored(scene) if flip else scene

    def state_dict(self) -> dict[str, Any]:
        """The number of batches that were given."""
        return {"step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; what was read ahead is thrown away."""
        self._ahead.clear()
        self._step = int(state["step"])

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def mirrored(scene: Scene) -> Scene:
    """A scene with left and right exchanged."""
    width = scene.image.shape[-1]
    boxes = scene.boxes.clone()
    boxes[:, [0, 2]] = width - scene.boxes[:, [2, 0]]
    return replace(scene, image=scene.image.flip(-1), boxes=boxes, masks=scene.masks.flip(-1))
