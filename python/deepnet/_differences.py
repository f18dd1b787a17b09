"""Derivatives of float32 functions by finite differences, and how far they can be trusted; the inside of gradcheck.

For outputs y and fixed random weights r, L = sum_j r_j y_j is a number, and backward(r) claims its derivative g with
respect to every input and parameter. If theta moves from theta- to theta+, then

    predicted = <g, theta+ - theta->   and   measured = sum_j r_j (y_j(theta+) - y_j(theta-))

must agree. Layers compute in float32, so three things stand between the two numbers, and each is measured:

- rounding: sigma_j, from second differences over a step so small that nothing else is left in them;
- curvature: how much the slope changes from one step size to another, a factor of 4 apart;
- kinks (ReLU at 0, ties of a maximum): the second difference y+ - 2 y0 + y- of a smooth output falls by 16 from
  step to step, that of a kink within the step only by 4. What is left of such outputs bounds their error, because a
  subgradient lies between the two one-sided slopes.

Where many entries move at once there are kinks within any step; there the outputs that have some are left out, of the
measured and, by another backward, of the predicted change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from deepnet._core import manual_seed

Vector: TypeAlias = NDArray[np.float64]

# Step sizes 2^-k times the tensor's size. They are taken in this order: the middle ones nearly always settle it.
_STEPS = (6, 8, 10, 7, 9, 11, 5, 12, 4)
_WIDE_STEPS = (2, 4, 6, 8, 10, 12)  # where many entries move at once
_NOISE_SAMPLES = 8
_NOISE_STEPS = (2.0**-16, 2.0**-15)
_ENOUGH_OUTPUTS = 8  # to estimate a standard deviation from


class Probe:
    """The layer as a function of arrays that are changed in place, seen through random weights r."""

    def __init__(self, layer: Any, inputs: list[NDArray[np.float32]], seed: int) -> None:
        self._layer = layer
        self._inputs = inputs
        self._seed: int | None = None
        self.y0, again = self.output(), self.output()
        if not np.array_equal(self.y0, again, equal_nan=True):  # dropout: repeat its mask
            self._seed = seed
            self.y0, again = self.output(), self.output()
            if not np.array_equal(self.y0, again, equal_nan=True):
                raise ValueError("[gradcheck] expected the same output for the same input and seed, got another")
        self.finite = bool(np.isfinite(self.y0).all())
        # One set of weights of the same sign, so that gradients of many outputs do not cancel, and one of mixed signs.
        random = np.random.default_rng(seed)
        r = random.uniform(0.5, 1.5, (2, self.y0.size)).astype(np.float32)
        r[1] *= random.choice(np.array([-1, 1], np.float32), self.y0.size)
        self.d_outputs = [self.as_output(row) for row in r]
        self.weights = r.astype(np.float64)

    def output(self) -> Vector:
        if self._seed is not None:
            manual_seed(self._seed)
        self._layer.reset_state()
        y = np.asarray(self._layer(*self._inputs))
        self._shape = y.shape
        return y.astype(np.float64).ravel()

    def as_output(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """Numbers in a row as an array of the output's shape."""
        return values.astype(np.float32).reshape(self._shape)

    def gradients(self, d_output: NDArray[np.float32]) -> tuple[Any, ...]:
        """dE/dInputs of one backward; dE/dW is left in the parameters."""
        for parameter in self._layer.parameters().values():
            parameter.grad[...] = 0
        self.output()
        d_inputs = self._layer.backward(d_output)
        return d_inputs if isinstance(d_inputs, tuple) else (d_inputs,)


class Claim(NamedTuple):
    """What backward says of one input or parameter."""

    name: str
    data: NDArray[np.float32]
    gradients: list[Vector]  # one for each set of weights r
    gradient_for: Callable[[NDArray[np.float32]], Vector]  # that for any other


class Direction(NamedTuple):
    """Entries of a flat tensor, and how far each moves in units of the step."""

    where: Any
    shift: Any


class Verdict(NamedTuple):
    """What differences say of a gradient along a direction."""

    kind: str  # "right", "wrong"; "kink" or "noise": cannot be judged because of that
    error: float = 0.0
    text: str = ""


class Look(NamedTuple):
    """What differences say of many entries that moved at once, in the gradient's units, for each set of weights r."""

    off: Vector  # how far the slope is from the predicted one
    uncertainty: Vector  # how far it may be for other reasons than a wrong gradient
    sizes: Vector  # |g| of each entry, of shape (sets, entries), without the outputs that were left out


class _Move(NamedTuple):
    """What the entries of a direction and the outputs did over one step."""

    moved: Vector  # theta+ - theta-, of each entry
    change: Vector  # y+ - y-, of each output
    bend: Vector  # y+ - 2 y0 + y-, of each output


class _Slope(NamedTuple):
    """Predicted and measured change of L over one step, for each set of weights r, and what the outputs did."""

    predicted: Vector
    measured: Vector
    changed: NDArray[np.bool_]  # the outputs that moved
    bend: Vector  # |y+ - 2 y0 + y-| of each output

    def difference_and_size(self) -> tuple[Vector, Vector]:
        size = np.maximum(np.abs(self.measured), np.abs(self.predicted))
        return np.abs(self.measured - self.predicted), size


class Judge:
    """Compares the claimed gradients of one tensor, one for each set of weights r, with differences."""

    def __init__(self, probe: Probe, claim: Claim, rtol: float) -> None:
        self.gradients = np.stack(claim.gradients)
        self._gradient_for = claim.gradient_for
        self._probe = probe
        self._flat = claim.data.reshape(-1)
        self._saved = self._flat.copy()
        self._scale = size_of(self._saved)
        self._rtol = rtol
        # Rounding of the result itself is there even where the second differences show none.
        self._last_bits = np.abs(probe.y0) * 2.0**-24
        self._sigma = self._rounding()

    def judge(self, direction: Direction) -> Verdict:
        """Right as soon as one step size shows it with little uncertainty; wrong if two show a difference beyond it."""
        slopes: dict[int, _Slope] = {}
        pending = np.ones(len(self.gradients), bool)
        errors = np.zeros(len(self.gradients))
        sigma = self._sigma
        for k in _STEPS:
            slopes[k] = slope = self._slope(direction, 2.0**-k)
            self._pass(slope, sigma, pending, errors)
            if k == _STEPS[0] and pending.any():
                sigma = self._rounding_along(direction, slope.changed)
                self._pass(slope, sigma, pending, errors)
                if self._hopeless(slope, sigma):
                    return Verdict("noise")
            if not pending.any():
                return Verdict("right", float(errors.max()))
        verdicts = [self._weigh(slopes, sigma, int(row)) for row in np.flatnonzero(pending)]
        for verdict in verdicts:
            if verdict.kind == "wrong":
                return verdict
        if not pending.all():  # one set of weights has shown it right, and the other one shows nothing else
            return Verdict("right", float(errors.max()))
        return verdicts[0]

    def looks(self, where: NDArray[np.int64], signs: Vector) -> Iterator[Look]:
        """Move many entries at once, each up or down by its sign, by one step after the other.

        Outputs with a kink within a step are left out of it, for there are some wherever many entries move.
        """
        moves: list[_Move] = []
        for k in _WIDE_STEPS:
            moves.insert(0, self._move(Direction(where, signs), 2.0**-k))
            if len(moves) > 1:
                yield self._compare(where, moves, 2.0 * 2.0**-k * self._scale)

    def _compare(self, where: NDArray[np.int64], moves: list[_Move], moved: float) -> Look:
        """By the last step, moves[0], and those before it, each 4 times as large as the next."""
        move, larger = moves[:2]
        kinked = self._kinked(moves)
        weights, gradients = self._probe.weights, self.gradients[:, where]
        if kinked.any():
            weights = np.where(kinked, 0.0, weights)
            gradients = np.stack([self._gradient_for(self._probe.as_output(row))[where] for row in weights])
        off, larger_off = ((weights @ m.change - gradients @ m.moved) / moved for m in (move, larger))
        noise = self._noise(move.change != 0.0, self._sigma, weights) * self._common / moved
        last_bits = 2.0**-22 * np.sqrt(np.square(gradients).sum(axis=1))  # of a backward in float32
        # Curvature makes the error of a step four times as large 16 times as large: a fifteenth is in this one.
        return Look(off, 5.0 * noise + last_bits + np.abs(off - larger_off / 4.0) / 5.0, np.abs(gradients))

    def _kinked(self, moves: list[_Move]) -> NDArray[np.bool_]:
        """Outputs that bend within the larger of the last two steps, but not as smooth ones do.

        Those fall by 16 from step to step. One with a kink may, too, but hardly twice; and where more outputs have
        kinks than bend smoothly, what looks smooth is the sum of several kinks.
        """
        floor = 6.0 * self._sigma
        bends = [np.abs(move.bend) for move in moves[:3]]
        bent = bends[1] > floor
        smooth = bent & (len(bends) == 3)
        for small, large in pairwise(bends):
            smooth &= (small > large / 32.0 - floor) & (small < large / 8.0 + floor)
        return bent & ~smooth if 2 * smooth.sum() > bent.sum() else bent

    @cached_property
    def _common(self) -> Vector:
        """How much larger the rounding error of sum_j r_j y_j is than if the outputs' errors had nothing in common.

        They have in a softmax, where all outputs of a row share a sum.
        """
        random = np.random.default_rng(0)
        sums = []
        for _ in range(_NOISE_SAMPLES):
            signs = random.choice(np.array([-1.0, 1.0]), self._flat.size)
            bend = self._move(Direction(slice(None), signs), _NOISE_STEPS[0]).bend
            sums.append(self._probe.weights @ np.where(np.abs(bend) < 12.0 * self._sigma, bend, 0.0))
        alone = np.sqrt(6.0 * np.square(self._probe.weights * self._sigma).sum(axis=1))
        together: Vector = np.sqrt(np.square(sums).mean(axis=0))
        ratio: Vector = together / np.maximum(alone, np.finfo(float).tiny)
        return np.maximum(ratio, 1.0)

    def _pass(self, slope: _Slope, sigma: Vector, pending: NDArray[np.bool_], errors: Vector) -> None:
        """Strike from `pending` the sets of weights for which this step shows that the gradient is right."""
        difference, size = slope.difference_and_size()
        noise = self._noise(slope.changed, sigma)
        right = pending & ((difference + 3.0 * noise <= self._rtol * size) | (size == 0.0))
        errors[right] = difference[right] / np.maximum(size[right], np.finfo(float).tiny)
        pending &= ~right

    def _hopeless(self, slope: _Slope, sigma: Vector) -> bool:
        """Whether the first step is lost in noise by more than the factor 4 that the largest step would gain."""
        difference, size = slope.difference_and_size()
        noise = self._noise(slope.changed, sigma)
        return bool(np.all((noise > 4.0 * self._rtol * size) & (difference < 5.0 * noise)))

    def _weigh(self, slopes: dict[int, _Slope], sigma: Vector, row: int) -> Verdict:
        """By all step sizes together, each compared with the one that is 4 times as large."""
        significant: list[tuple[float, float]] = []
        kinked = False
        changed = slopes[min(slopes)].changed
        noise = 5.0 * float(self._noise(changed, sigma)[row])
        weights = np.abs(self._probe.weights[row])
        # Kinks of hidden layers may cancel in the bend of one output and not in its change; of many outputs less so.
        caution = 1.0 + 2.0 / np.sqrt(max(int(changed.sum()), 1))
        for k, slope in slopes.items():
            larger = slopes.get(k - 2)
            if larger is None:
                continue
            predicted, measured = float(slope.predicted[row]), float(slope.measured[row])
            # The exact ratio of the steps, for entries are rounded to float32 when they move.
            steps = predicted / larger.predicted[row] if larger.predicted[row] else 0.25
            curvature = abs(measured - steps * float(larger.measured[row]))
            bend = np.where((slope.bend > 6.0 * sigma) & (slope.bend > larger.bend / 8.0), slope.bend, 0.0)
            kink = caution * float(weights @ bend)
            size = max(abs(measured), abs(predicted))
            uncertainty = self._rtol * size + noise + curvature + kink
            kinked = kinked or kink > self._rtol * size
            if abs(measured - predicted) > uncertainty:
                significant.append((uncertainty / size, measured / predicted if predicted else np.inf))
        if len(significant) < 2:
            return Verdict("kink" if kinked else "noise")
        ratio = min(significant)[1]
        error = abs(ratio - 1.0) / max(abs(ratio), 1.0) if np.isfinite(ratio) else 1.0
        return Verdict("wrong", float(error), f"differences are {ratio:.6g} times what backward says")

    def _slope(self, direction: Direction, step: float) -> _Slope:
        move = self._move(direction, step)
        return _Slope(
            self.gradients[:, direction.where] @ move.moved,
            self._probe.weights @ move.change,
            move.change != 0.0,
            np.abs(move.bend),
        )

    def _move(self, direction: Direction, step: float) -> _Move:
        """Move the tensor to both sides and see."""
        flat, saved, (where, shift) = self._flat, self._saved, direction
        try:
            flat[where] = saved[where] + step * self._scale * shift
            plus, y_plus = flat[where].astype(np.float64), self._probe.output()
            flat[where] = saved[where] - step * self._scale * shift
            minus, y_minus = flat[where].astype(np.float64), self._probe.output()
        finally:
            flat[where] = saved[where]
        return _Move(plus - minus, y_plus - y_minus, y_plus - 2.0 * self._probe.y0 + y_minus)

    def _noise(self, changed: NDArray[np.bool_], sigma: Vector, weights: Vector | None = None) -> Vector:
        """Standard deviation of the measured change. Where no output moved, any may have, by less than it can tell."""
        moved = np.where(changed, sigma, 0.0) if changed.any() else sigma
        variance: Vector = 2.0 * np.square((self._probe.weights if weights is None else weights) * moved).sum(axis=1)
        return np.sqrt(variance)

    def _rounding(self) -> Vector:
        """Standard deviation of each output's rounding error when the whole tensor moves."""
        signs = np.where(np.arange(self._flat.size) % 3 == 0, -1.0, 1.0)
        bend = self._slope(Direction(slice(None), signs), _NOISE_STEPS[0]).bend
        bend = bend[bend > 0.0]
        # y+ - 2 y0 + y- has the variance 6 sigma^2. A quarter of |normal| is below 0.3186; the quartile rather than the
        # median, because outputs with a kink here are far above the noise.
        pooled = float(np.quantile(bend, 0.25)) / 0.3186 / np.sqrt(6.0) if bend.size else 0.0
        return np.maximum(self._last_bits, pooled)

    def _rounding_along(self, direction: Direction, changed: NDArray[np.bool_]) -> Vector:
        """The same when only this direction moves, which may touch a small part of the sums that make the outputs."""
        if changed.sum() < _ENOUGH_OUTPUTS:
            return self._sigma
        bends = [self._slope(direction, step).bend[changed] for step in _NOISE_STEPS]
        pooled = max(float(np.sqrt(np.mean(np.square(bend)) / 6.0)) for bend in bends)
        return np.maximum(self._last_bits, pooled)


def size_of(values: NDArray[np.float32]) -> float:
    """Root of the mean square; of zeros 0.1, for biases that start there live beside numbers of about that size."""
    size = float(np.sqrt(np.mean(np.square(values, dtype=np.float64)))) if values.size else 0.0
    return size if size > 0.0 else 0.1
