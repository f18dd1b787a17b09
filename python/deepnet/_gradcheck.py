"""``gradcheck``: does backward compute the derivative of forward?

Entries of every input and parameter are compared with finite differences one by one, as many as time allows; those not
looked at, and those whose gradient is below the rounding noise, together in groups, by moving along the gradient. That
shows what a group has in common; for a single wrong entry among them _search.py looks.

At a kink, such as a ReLU at 0 or the tie of a maximum, backward may return any of several slopes, and through further
layers even one that no difference shows: relu(x) - relu(-x) is x, but its layers' gradients at 0 add up to 0. So what
looks wrong, or hidden by a kink, is looked at again beside that place, with all inputs and parameters moved a little;
the verdicts there count. How single comparisons are judged is told in _differences.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deepnet._arguments import at_least_one, checked_seed
from deepnet._core import Layer, RecurrentCell
from deepnet._differences import Claim, Direction, Judge, Probe, Vector, Verdict, size_of
from deepnet._search import Search
from deepnet._states import states_put_aside

_GROUPS = 16
_JITTER = 2.0**-4  # of a tensor's size: kinks then lie outside most of the steps of the differences
_ATTEMPTS = 3  # places beside the given one ...
_CONFIRMED = 2  # ... and how many of them must show an error


class GradientError(AssertionError):
    """A gradient that differs from what finite differences say; names the parameter or input.

    Examples
    --------
    >>> import numpy as np
    >>> import deepnet as dn
    >>> from deepnet import nn
    >>> class Square(nn.Layer):
    ...     def forward(self, x):
    ...         self.x = x.copy()
    ...         return x * x
    ...     def backward(self, dy):
    ...         return self.x * dy  # a factor of 2 is missing
    >>> try:
    ...     dn.gradcheck(Square(), np.ones((1, 1)))
    ... except dn.GradientError as error:
    ...     print(error)
    [Square] input 0: gradient is wrong in 1 of 1 entries checked, most at [0, 0]: differences are 2 times ...
    """


class TensorReport(NamedTuple):
    """What was found for one parameter or input.

    Examples
    --------
    >>> import numpy as np
    >>> import deepnet as dn
    >>> from deepnet import nn
    >>> (tensor,) = dn.gradcheck(nn.Tanh(), np.ones((2, 3)))
    >>> tensor.name, tensor.checked, tensor.unresolved, tensor.max_relative_error < 3e-3
    ('input 0', 6, 0, True)
    """

    name: str
    checked: int  #: entries compared one by one
    unresolved: int  #: of these, how many sit on a kink or below the rounding noise
    max_relative_error: float  #: over the entries that were resolved
    size: int  #: all entries
    covered: int  #: of these, how many could not be off by 1 %, be it one alone, without this being seen


class Report(tuple[TensorReport, ...]):
    """The result of :func:`gradcheck`: a tuple of one :class:`TensorReport` a tensor, which prints as a table.

    Examples
    --------
    >>> import numpy as np
    >>> import deepnet as dn
    >>> from deepnet import nn
    >>> report = dn.gradcheck(nn.Linear(3, 2), np.ones((2, 3)))
    >>> [tensor.name for tensor in report], report.max_relative_error < 3e-3
    (['input 0', "parameter 'weight'", "parameter 'bias'"], True)
    """

    @property
    def max_relative_error(self) -> float:
        """The largest over all tensors."""
        return max((tensor.max_relative_error for tensor in self), default=0.0)

    def __str__(self) -> str:
        return "\n".join(
            f"{t.name}: {t.checked} entries checked, {t.unresolved} could not be judged, "
            f"largest relative error {t.max_relative_error:.1e}"
            + (f"; an error of 1 % would have shown in {t.covered} of {t.size}" if t.size > t.checked else "")
            for t in self
        )


def gradcheck(layer: Layer, *inputs: ArrayLike, max_entries: int = 200, rtol: float = 3e-3, seed: int = 0) -> Report:
    """Compare backward's gradients with central differences of forward.

    A layer is checked in the mode it is in. In training mode a layer with dropout is seeded before every forward, so
    that its mask stays; this starts the random numbers of :func:`deepnet.manual_seed` anew. Stateful layers begin every
    forward anew. Parameters, their gradients and states that are carried on are left as they were found, whatever
    happens.

    Parameters
    ----------
    layer
        A layer or network, native or written in Python.
    inputs
        Arrays to call it with, an initial state among them; an LSTM's two states as one array (2, ...). A cell without
        one starts from zeros. Small batches make fast checks.
    max_entries
        Entries of a tensor to check one by one; of larger tensors a fixed random choice. The others are checked in
        groups: along the gradient, which shows errors that all the group shares, such as a wrong scale; and, in at most
        half as many groups as this, by random steps up and down, which show an error of 1 % in any one entry.
    rtol
        Relative error that passes; an error of 1 % fails with room to spare.
    seed
        Of the weights r and of the choice of entries.

    Returns
    -------
    Report
        For each input and parameter the number of entries and the largest relative error.

    Raises
    ------
    GradientError
        A gradient is wrong, of the wrong shape or not finite. The message names the parameter or input and its entry.
    TypeError
        `layer` is not a layer, an input not an array of real numbers.
    ValueError
        The output is not finite, or changes between two calls with the same arrays and the same seed; `max_entries` is
        below 1, `rtol` not between 0 and 1, `seed` negative.

    Notes
    -----
    A layer with ``truncate`` leaves part of the gradient out, on purpose: check it on sequences of that many steps at
    most.

    Where a softmax is saturated, its largest probability rounding to 1, backward makes gradients of 1e-9 as differences
    of numbers near 1, and they are found wrong: check it at smaller inputs.

    What float32 can tell is limited. A group shows an error of 1 % in one of its entries if that is above the rounding
    noise of all outputs together. So large tensors, and entries whose gradient is far below the others', take more
    groups than there is time for; and where hidden units have kinks, few outputs are free of them when many entries
    move. The report tells for how many entries an error of 1 % would have shown. Measured: of 500,000 weights of a
    linear layer 95 %; of 10,000 weights of a first layer with two more above it, in batches of 8, 19 to 34 % (tanh) and
    69 to 75 % (ReLU). A larger `max_entries` shows more; so does checking the layers of a network one by one.

    References
    ----------
    Press et al. 2007, "Numerical recipes", sec. 5.7, for the size of steps; Dorfman 1943, "The detection of defective
    members of large populations", for testing in groups.

    Examples
    --------
    >>> import numpy as np
    >>> import deepnet as dn
    >>> from deepnet import nn
    >>> print(dn.gradcheck(nn.Conv2d(2, 3, 3), np.random.default_rng(0).normal(size=(2, 2, 5, 5))))
    input 0: 100 entries checked, 0 could not be judged, largest relative error ...
    parameter 'weight': 54 entries checked, 0 could not be judged, largest relative error ...
    parameter 'bias': 3 entries checked, 0 could not be judged, largest relative error ...
    """
    if not isinstance(layer, Layer):
        got = f"the class {layer.__name__}" if isinstance(layer, type) else f"a {type(layer).__name__}"
        raise TypeError(f"[gradcheck] expected a layer, got {got}: derive from nn.Layer, with forward and backward")
    at_least_one("gradcheck", max_entries=max_entries)
    seed = checked_seed("gradcheck", seed)
    if not isinstance(rtol, (int, float, np.number)):
        raise TypeError(f"[gradcheck] expected rtol to be a number, got {rtol!r}")
    if not 0.0 < rtol < 1.0:
        raise ValueError(f"[gradcheck] expected 0 < rtol < 1, got {rtol}")
    arrays = [_real_array(array, index) for index, array in enumerate(inputs)]
    label = f"[{getattr(layer, 'kind', type(layer).__name__)}]"
    parameters = layer.parameters()
    with states_put_aside(layer), _restored(parameters.values()):
        if len(arrays) == 1 and _is_cell(layer):
            arrays.append(np.zeros_like(layer(arrays[0]), np.float32))
        probe = Probe(layer, arrays, seed)
        if not probe.finite:
            raise ValueError("[gradcheck] expected finite outputs, got nan or inf")
        tensors = {
            claim.name: _Tensor(claim, Judge(probe, claim, rtol), max_entries, seed)
            for claim in _gradients(label, probe, arrays, parameters)
        }
        for tensor in tensors.values():
            tensor.check()
        moving = [*arrays, *(parameter.data for parameter in parameters.values())]
        places = [array.copy() for array in moving]
        looked_again = False
        for attempt in range(_ATTEMPTS):
            if not any(tensor.doubts for tensor in tensors.values()):
                break
            _jitter(moving, places, seed + attempt)
            probe = Probe(layer, arrays, seed)
            if probe.finite:  # else this place is outside the layer's domain
                looked_again = True
                for claim in _gradients(label, probe, arrays, parameters):
                    tensors[claim.name].check_again(Judge(probe, claim, rtol))
    for tensor in tensors.values():
        if not looked_again:
            tensor.believe()
    findings = [tensor.finding() for tensor in tensors.values() if tensor.wrong]
    if findings:
        raise GradientError(f"{label} " + f"\n{label} ".join(findings))
    return Report(tensor.report() for tensor in tensors.values())


class _Doubt:
    """Entries that looked wrong, or could not be judged because of a kink."""

    def __init__(self, entries: NDArray[np.int64], verdict: Verdict) -> None:
        self.entries = entries
        self.verdict = verdict  # the last one that said wrong, if any did
        self.times_wrong = 0  # beside the given place


class _Tensor:
    """The state of the check of one input or parameter."""

    def __init__(self, claim: Claim, judge: Judge, max_entries: int, seed: int) -> None:
        self._name = claim.name
        self._shape = claim.data.shape
        self._size = claim.data.size
        self._judge = judge
        self._random = np.random.default_rng(seed)
        self._entries = self._choose_entries(max_entries)
        self._looks = max_entries // 2
        self._covered = np.zeros(self._size, bool)
        self._noisy: list[int] = []
        self._largest = 0.0
        self.doubts: list[_Doubt] = []
        self.wrong: list[_Doubt] = []

    def check(self) -> None:
        """Look at single entries, then at groups of the others, then for a single one among these."""
        rest = np.setdiff1d(np.arange(self._size), self._entries, assume_unique=True)
        for entry in self._entries:
            self._examine(np.array([entry]))
        groups = np.array_split(rest, min(_GROUPS, len(rest))) if len(rest) else []
        for group in [np.array(self._noisy, np.int64), *groups]:
            if len(group) > 1:
                self._examine(group)
        if len(rest) and not any(doubt.verdict.kind == "wrong" and len(doubt.entries) == 1 for doubt in self.doubts):
            self._search()

    def _search(self) -> None:
        search = Search(self._judge, self._looks, self._random)
        for entry in search.suspects():
            if entry not in self._entries:
                self._entries = np.append(self._entries, entry)
                self._examine(np.array([entry]))
        self._covered = search.covered

    def check_again(self, judge: Judge) -> None:
        """Look at the doubts from beside the kink. One good look clears them, two bad ones confirm them."""
        doubts, self.doubts = self.doubts, []
        for doubt in doubts:
            verdict = self._look(judge, doubt.entries)
            if verdict.kind == "wrong":
                doubt.times_wrong += 1
                doubt.verdict = verdict
            if doubt.times_wrong == _CONFIRMED:
                self.wrong.append(doubt)
            elif verdict.kind in ("wrong", "kink"):
                self.doubts.append(doubt)

    def believe(self) -> None:
        """Take the first look for the truth, where there is no other."""
        self.wrong = [doubt for doubt in self.doubts if doubt.verdict.kind == "wrong"]

    def finding(self) -> str:
        """Where it is wrong, most of all."""
        single = [doubt for doubt in self.wrong if len(doubt.entries) == 1]
        worst = max(single or self.wrong, key=lambda doubt: doubt.verdict.error)
        first, last = self._at(worst.entries[0]), self._at(worst.entries[-1])
        if single:
            where = f"in {len(single)} of {len(self._entries)} entries checked, most at {first}"
        else:
            where = f"along {len(worst.entries)} entries, from {first} to {last}"
        return (
            f"{self._name}: gradient is wrong {where}: {worst.verdict.text} (relative error {worst.verdict.error:.1e})"
        )

    def report(self) -> TensorReport:
        unresolved = {*self._noisy, *(int(doubt.entries[0]) for doubt in self.doubts if len(doubt.entries) == 1)}
        self._covered[[entry for entry in self._entries if int(entry) not in unresolved]] = True
        covered = int(self._covered.sum())
        return TensorReport(self._name, len(self._entries), len(unresolved), self._largest, self._size, covered)

    def _examine(self, group: NDArray[np.int64]) -> None:
        verdict = self._look(self._judge, group)
        if verdict.kind in ("wrong", "kink"):
            self.doubts.append(_Doubt(group, verdict))

    def _look(self, judge: Judge, group: NDArray[np.int64]) -> Verdict:
        slope = judge.gradients[0, group]
        steepest = float(np.abs(slope).max())
        if len(group) == 1:
            direction = Direction(slice(int(group[0]), int(group[0]) + 1), 1.0)
        elif steepest > 0.0:  # along the gradient, which makes the most of it
            direction = Direction(group, slope / steepest)
        else:
            return Verdict("noise")
        verdict = judge.judge(direction)
        if verdict.kind == "right":
            self._largest = max(self._largest, verdict.error)
        elif verdict.kind == "noise" and len(group) == 1:
            self._noisy.append(int(group[0]))
        return verdict

    def _choose_entries(self, most: int) -> NDArray[np.int64]:
        """All, or the ends (where loops over blocks have their tails), the steepest and a random choice."""
        if self._size <= most:
            return np.arange(self._size)
        special = [0, self._size - 1, int(np.argmax(np.abs(self._judge.gradients[0])))][:most]
        others = self._random.choice(self._size, most - len(special), replace=False)
        return np.unique(np.concatenate([special, others]).astype(np.int64))

    def _at(self, entry: np.int64) -> str:
        return str([int(i) for i in np.unravel_index(int(entry), self._shape)])


def _gradients(
    label: str, probe: Probe, inputs: list[NDArray[np.float32]], parameters: dict[str, Any]
) -> Iterator[Claim]:
    """The claims for every input and parameter that has any entries."""
    rows = [_gradients_for(label, probe, inputs, parameters, d_output) for d_output in probe.d_outputs]
    for name, (data, _) in rows[0].items():
        if data.size:

            def gradient_for(d_output: NDArray[np.float32], name: str = name) -> Vector:
                return _gradients_for(label, probe, inputs, parameters, d_output)[name][1]

            yield Claim(name, data, [row[name][1] for row in rows], gradient_for)


def _gradients_for(
    label: str,
    probe: Probe,
    inputs: list[NDArray[np.float32]],
    parameters: dict[str, Any],
    d_output: NDArray[np.float32],
) -> dict[str, tuple[NDArray[np.float32], Vector]]:
    """By one backward: data and gradient by name."""
    d_inputs = probe.gradients(d_output)
    if len(d_inputs) != len(inputs):
        raise GradientError(f"{label} expected backward to return {len(inputs)} gradients, got {len(d_inputs)}")
    found = [(f"input {i}", x, d) for i, (x, d) in enumerate(zip(inputs, d_inputs, strict=True)) if d is not None]
    found += [(f"parameter '{name}'", p.data, p.grad) for name, p in parameters.items()]
    claims: dict[str, tuple[NDArray[np.float32], Vector]] = {}
    for name, data, gradient in found:
        gradient = np.array(gradient, np.float64)
        if gradient.shape != data.shape:
            raise GradientError(f"{label} {name}: expected a gradient of shape {data.shape}, got {gradient.shape}")
        if not np.isfinite(gradient).all():
            where = [int(i) for i in np.argwhere(~np.isfinite(gradient))[0]]
            raise GradientError(f"{label} {name}: expected a finite gradient, got nan or inf at {where}")
        claims[name] = data, gradient.ravel()
    return claims


def _is_cell(layer: Layer) -> bool:
    """Whether it takes a state as its second input and returns one."""
    return isinstance(layer, RecurrentCell) or hasattr(layer, "state_size")


def _jitter(arrays: list[NDArray[np.float32]], places: list[NDArray[np.float32]], seed: int) -> None:
    """Move all arrays to random points near the given ones."""
    random = np.random.default_rng(seed)
    for array, place in zip(arrays, places, strict=True):
        array[...] = place + _JITTER * size_of(place) * random.uniform(-1.0, 1.0, place.shape)


def _real_array(array: ArrayLike, index: int) -> NDArray[np.float32]:
    """A copy, for it will be changed."""
    values = np.asarray(array)
    if values.dtype.kind not in "biuf":
        raise TypeError(f"[gradcheck] expected input {index} to be an array of real numbers, got dtype {values.dtype}")
    return np.array(values, np.float32, order="C")


@contextmanager
def _restored(parameters: Any) -> Iterator[None]:
    """Puts data and gradients back, on any way out."""
    saved = [(p, p.data.copy(), p.grad.copy()) for p in parameters]
    try:
        yield
    finally:
        for parameter, data, grad in saved:
            parameter.data[...] = data
            parameter.grad[...] = grad
