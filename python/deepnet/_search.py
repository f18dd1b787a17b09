"""Which single entry of a large gradient is wrong? Found by halves; the inside of gradcheck.

Move all entries of a block by the same step h, each up or down at random, signs s_i = +-1. The slope along s is
sum_i s_i g_i, so if one entry's gradient is off by e, so is the slope, however many entries move with it: one look at a
block covers all its entries. What limits a look is that rounding, curvature and kinks add up over the block, too. So a
block whose look leaves room for an error of 1 % is halved, the one with most to gain first, as long as there is time;
and one whose slope is off by more than these explain is halved until a single entry is left, which is then judged like
any other. A look alone accuses nobody: errors of 0.1 % in all entries, which pass one by one, may add up to as much.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from deepnet._differences import Judge

_WANTED = 0.01  # the relative error of one entry that should not escape
_SUSPICIOUS, _CALM = 0, 1  # the order in which blocks are looked at
_MARGIN = 2.0  # by which it should exceed the uncertainty of a look, for all looks on the way to it to see it


class Search:
    """Looks at all entries of a tensor, in blocks that are as small as they must be and as time allows."""

    def __init__(self, judge: Judge, looks: int, random: np.random.Generator) -> None:
        self._judge = judge
        self._looks = {_SUSPICIOUS: looks, _CALM: looks}  # that are left
        self._sizes = np.abs(judge.gradients).max(axis=0)
        self._signs = random.choice(np.array([-1.0, 1.0]), len(self._sizes))
        self.covered = self._sizes == 0.0  # 1 % of nothing is nothing

    def suspects(self) -> Iterator[int]:
        """Entries to be judged one by one."""
        count = 0  # so that the queue never compares arrays
        queue: list[tuple[int, float, int, NDArray[np.int64]]] = [(_CALM, 0.0, count, np.arange(len(self._sizes)))]
        while queue:
            kind, _, _, block = heapq.heappop(queue)
            if kind == _SUSPICIOUS and len(block) == 1:
                yield int(block[0])
            elif self._looks[kind] > 0:
                self._looks[kind] -= 1
                kind = _SUSPICIOUS if self._is_off(block) else _CALM
                for part in self._parts(block, kind):
                    count += 1
                    urgency = len(part) if kind == _SUSPICIOUS else -float(self._sizes[part].sum())
                    heapq.heappush(queue, (kind, urgency, count, part))

    def _parts(self, block: NDArray[np.int64], kind: int) -> list[NDArray[np.int64]]:
        """What to look at next instead of the block."""
        if kind == _SUSPICIOUS:
            return np.array_split(block, 2) if len(block) > 1 else [block]
        left = block[~self.covered[block]]
        # Without most of the others it may well be covered as a whole.
        parts = [left] if 2 * len(left) < len(block) else np.array_split(left, 2)
        return [part for part in parts if 0 < len(part) < len(block)]

    def _is_off(self, block: NDArray[np.int64]) -> bool:
        covered = before = self.covered[block]
        for look in self._judge.looks(block, self._signs[block]):
            if (np.abs(look.off) > look.uncertainty).any():
                return True
            more = covered | (_WANTED * look.sizes > _MARGIN * look.uncertainty[:, None]).any(axis=0)
            if more.all() or (more.sum() == covered.sum() > before.sum()):  # smaller steps would only add noise
                covered = more
                break
            covered = more
        self.covered[block] = covered
        return False
