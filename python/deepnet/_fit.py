"""``fit``, ``evaluate`` and ``save``: the methods that every layer gains in Python.

All work happens in :class:`deepnet.Trainer`; what is here chooses batches, keeps the books and stays out of
the way: per batch it costs about a microsecond.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from deepnet import _core, _progress
from deepnet._arguments import at_least_one, checked_seed
from deepnet._batches import (
    EVALUATION_BATCH,
    ArraySource,
    BatchSource,
    Source,
    as_array,
    first_targets,
    labels_explained,
    validation_source,
)
from deepnet._core import Layer, Loss, Optimizer, Trainer
from deepnet._last_fit import HistoryAttribute, LastFit, keep_fit, last_fit
from deepnet._states import layers_of, states_put_aside
from deepnet._summary import summary

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from deepnet.callbacks import CallbackLike, CallbackList

_LOSSES: dict[str, type[Loss]] = {
    "cross_entropy": _core.CrossEntropyLoss,
    "nll": _core.NLLLoss,
    "mse": _core.MSELoss,
    "bce_with_logits": _core.BCEWithLogitsLoss,
}
_OPTIMIZERS: dict[str, Callable[[], Optimizer]] = {
    "sgd": lambda: _core.SGD(lr=0.01, momentum=0.9),
    "adam": _core.Adam,
    "adamw": _core.AdamW,
    "rmsprop": _core.RMSprop,
}


class History(dict[str, list[float]]):
    """What happened in ``fit``: ``history["loss"]``, ``["accuracy"]``, ``["val_loss"]``, ``["val_accuracy"]``.

    Each is a list with one entry an epoch. Accuracies are there where the targets were labels, the val_
    entries where there was validation data.

    Attributes
    ----------
    seconds
        Time each epoch took, validation included.

    Examples
    --------
    >>> import numpy as np
    >>> from deepnet import nn
    >>> history = nn.Linear(4, 4).fit(np.eye(4), np.arange(4), epochs=3, progress=False)
    >>> sorted(history), len(history["loss"]), history.epochs
    (['accuracy', 'loss'], 3, 3)
    """

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    @property
    def epochs(self) -> int:
        """Number of epochs that were finished."""
        return len(self.seconds)

    def append(self, logs: dict[str, float], seconds: float) -> None:
        """Add the figures of one epoch."""
        for name, value in logs.items():
            self.setdefault(name, []).append(value)
        self.seconds.append(seconds)

    def drop_unfinished(self) -> None:
        """Forget an epoch whose figures are here in part, because Ctrl-C came while they were added."""
        for values in self.values():
            del values[self.epochs :]

    def __repr__(self) -> str:
        last = _progress.format_logs({name: values[-1] for name, values in self.items()})
        return f"<History: {self.epochs} epochs, {sum(self.seconds):.1f} s{', ' + last if last else ''}>"


def fit(
    self: Layer,
    x: Any,
    y: ArrayLike | None = None,
    *,
    loss: Loss | str | None = None,
    optimizer: Optimizer | str | None = None,
    epochs: int = 1,
    batch_size: int = 32,
    validation_data: Any = None,
    shuffle: bool = True,
    seed: int = 0,
    callbacks: CallbackLike | Iterable[CallbackLike] = (),
    progress: bool = True,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
) -> History:
    """Train the network.

    Parameters
    ----------
    x, y
        Inputs of shape (N, ...) and targets of shape (N, ...): integer labels, soft labels of shape (N, C), or real
        numbers. Or, without `y`, an iterable of batches ``(x, y)`` that can be walked once an epoch, such as a list.
    loss
        A loss or its name: "cross_entropy", "nll", "mse", "bce_with_logits". By default cross entropy, but mean
        squared error where `y`, or that of the first batch, is an array of floats.
    optimizer
        An optimizer or its name: "sgd", which is the default and ``SGD(lr=0.01, momentum=0.9)``, or "adam", "adamw",
        "rmsprop" with their defaults.
    epochs, batch_size
        Walks over the data, and rows a step. The last batch of an epoch may be smaller; none is dropped.
    validation_data
        A pair ``(x, y)`` of arrays, or ``(x, y, lengths)`` or ``(x, y, mask)``, or an iterable of batches, to evaluate
        after each epoch. Two or three of anything are arrays, unless all are batches: tuples, or lists of arrays.
    shuffle, seed
        Take the rows in a new random order each epoch, which `seed` decides. An iterable's order is its own.
        Initial weights and dropout follow :func:`deepnet.manual_seed` instead.
    callbacks
        Functions ``callback(epoch, logs)`` or objects with the methods of :mod:`deepnet.callbacks`.
    progress
        Draw a progress bar with loss, accuracy and samples per second on standard error.
    lengths, mask
        Which steps of sequences (N, T, ...) count: N lengths in 1 to T, or an array (N, T) of 0 and 1. Recurrent
        layers carry their state through the others unchanged. Batches of an iterable have theirs behind y,
        ``(x, y, lengths)`` or ``(x, y, mask)``. Where targets have padding, too, give it the label that the loss
        ignores, ``ignore_index``; a batch of nothing else is left out.

    Returns
    -------
    History
        Lists by name, one entry an epoch. Also left in ``net.history``, where Ctrl-C leaves it too.

    Raises
    ------
    ShapeError
        Rows of `x` and `y` differ in number, or do not fit the network or the loss.
    TypeError
        Complex or object arrays, class labels that are floats.
    ValueError
        No data, ``epochs`` or ``batch_size`` below 1, ``seed`` below 0, labels out of range, an iterable that can be
        walked only once, lengths outside [1, T], a mask of other numbers than 0 and 1, or lengths beside an iterable.
    FloatingPointError
        The loss is not finite; the message says where that began, of sequences also at which step. The weights are
        those before that batch. Likewise of validation data, where it names the batch; and where weights that were
        finite are not so at the end of an epoch.

    Notes
    -----
    Ctrl-C ends training between two batches with a KeyboardInterrupt; the network is usable and in the mode
    (training or evaluation) in which fit found it.

    Stateful recurrent layers begin each epoch with a state of zeros (``reset_state()``) and carry it on from batch to
    batch, which must then be of one size. Validation has a state of its own.

    Examples
    --------
    >>> import numpy as np
    >>> from deepnet import nn, optim
    >>> x = np.random.default_rng(0).normal(size=(256, 4))
    >>> y = (x[:, 0] > 0).astype(int)
    >>> net = nn.Sequential(nn.Linear(4, 24), nn.ReLU(), nn.Linear(24, 2))
    >>> history = net.fit(x, y, optimizer=optim.SGD(lr=0.1, momentum=0.9), epochs=5, progress=False)
    >>> history["loss"][-1] < history["loss"][0]
    True

    Sequences of different lengths, with one label each:

    >>> x, lengths, y = np.ones((4, 5, 3)), [5, 2, 3, 1], np.array([1, 0, 0, 0])
    >>> net = nn.Sequential(nn.LSTM(3, 8, return_sequences=False), nn.Linear(8, 2))
    >>> net.fit(x, y, lengths=lengths, progress=False).epochs
    1
    """
    from deepnet.callbacks import CallbackList

    at_least_one("fit", epochs=epochs, batch_size=batch_size)
    random = np.random.default_rng(checked_seed("fit", seed)) if shuffle else None
    hooks = CallbackList(callbacks)
    targets, walk = (y, None) if y is not None or loss is not None else first_targets(x)
    chosen_loss = _choose_loss("fit", loss, targets)
    trainer = Trainer(self, chosen_loss, _choose_optimizer(optimizer))
    source: Source
    if y is None:
        _no_padding("fit", lengths, mask)
        source = BatchSource("fit", x, chosen_loss, epochs, walk)
    else:
        source = ArraySource("fit", x, y, chosen_loss, batch_size, random, lengths, mask)
    validation = None if validation_data is None else validation_source(validation_data, chosen_loss, epochs)

    history = History()
    shape = last_fit(self).input_shape if y is None else np.shape(x)
    keep_fit(self, LastFit(history, chosen_loss, shape))
    modes = [(layer, layer.training) for layer in layers_of(self)]  # outermost first: in this order each is restored
    bar = _progress.Progress(progress, epochs, source.samples)
    try:
        try:
            self.train()
            with labels_explained("fit", y, loss is None):
                _train(trainer, source, validation, epochs, hooks, bar, history)
        finally:
            bar.close()
            history.drop_unfinished()
            for layer, mode in modes:
                layer.train(mode)
    except BaseException as error:
        hooks.end(history, during=error)
        raise
    hooks.end(history)
    return history


def evaluate(
    self: Layer,
    x: Any,
    y: ArrayLike | None = None,
    *,
    loss: Loss | str | None = None,
    batch_size: int = 256,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
) -> dict[str, float]:
    """Mean loss over the data, and accuracy where the targets are labels, in evaluation mode.

    Stateful recurrent layers begin with a state of zeros and carry it on from batch to batch; afterwards they have the
    state from before again.

    Parameters
    ----------
    x, y
        Arrays, or without `y` an iterable of batches ``(x, y)``.
    loss
        As in :func:`fit`; by default the loss of the last fit of this network.
    batch_size
        Rows at a time, at least 1.
    lengths, mask
        Which steps of sequences (N, T, ...) count, as in :func:`fit`. The loss of padding that labels and outputs have,
        too, is left out by their label: ``ignore_index`` of :class:`deepnet.nn.CrossEntropyLoss`.

    Returns
    -------
    dict
        ``{"loss": ..., "accuracy": ...}``; accuracy is the share of rows, those that the loss ignores aside, whose
        largest output is at their label.

    Raises
    ------
    ShapeError, TypeError, ValueError
        As in :func:`fit`.
    FloatingPointError
        The loss is not finite; the message names the batch.

    Examples
    --------
    >>> import numpy as np
    >>> from deepnet import nn
    >>> nn.ReLU().evaluate(10 * np.eye(2), np.array([0, 0]), loss="cross_entropy")["accuracy"]
    0.5
    """
    at_least_one("evaluate", batch_size=batch_size)
    loss_given = last_fit(self).loss if loss is None else loss
    targets, walk = (y, None) if y is not None or loss_given is not None else first_targets(x)
    chosen_loss = _choose_loss("evaluate", loss_given, targets)
    source: Source
    if y is None:
        _no_padding("evaluate", lengths, mask)
        source = BatchSource("evaluate", x, chosen_loss, first_walk=walk)
    else:
        source = ArraySource("evaluate", x, y, chosen_loss, batch_size, lengths=lengths, mask=mask)
    with labels_explained("evaluate", y, loss is None):
        return _scores("evaluate", self, source, chosen_loss, batch_size)


def save(self: Layer, path: str | os.PathLike[str], optimizer: Optimizer | None = None) -> None:
    """Write structure and weights, and the optimizer's state if given, to a safetensors file.

    The file is replaced whole: a crash leaves the old one or the new one. :func:`deepnet.load` reads it back.

    The attribute ``net.metadata``, a dictionary of texts by name such as those of classes, goes with it; a network that
    was loaded has its file's. "format", "structure", "optimizer" and names that begin with "deepnet" are the file's
    own.

    Parameters
    ----------
    path
        File to write.
    optimizer
        To go on training later, with :func:`deepnet.load_optimizer`.

    Raises
    ------
    OSError
        The file cannot be written.
    TypeError
        The network has a layer written in Python, which a file cannot hold.
    ValueError
        Metadata of a name that is the file's own.

    Examples
    --------
    >>> import numpy as np
    >>> import deepnet as dn
    >>> from deepnet import nn
    >>> net, x = nn.Sequential(nn.Linear(4, 3)), np.ones((2, 4))
    >>> net.metadata = {"classes": "cat,dog,bird"}
    >>> net.save("m.safetensors")
    >>> loaded = dn.load("m.safetensors")
    >>> bool((loaded(x) == net(x)).all()), loaded.metadata
    (True, {'classes': 'cat,dog,bird'})
    """
    _core.save(self, os.fspath(path), optimizer, _checked_metadata(self.metadata))


def attach(layer: type[Layer]) -> None:
    """Give the layer class its training methods, its history, and metadata: read-only, for all layers share it."""
    for method in (fit, evaluate, summary, save):
        setattr(layer, method.__name__, method)
    setattr(layer, "history", HistoryAttribute())  # noqa: B010 - as layers see it, it is a History
    layer.metadata = MappingProxyType({})


def _train(
    trainer: Trainer,
    source: Source,
    validation: Source | None,
    epochs: int,
    hooks: CallbackList,
    bar: _progress.Progress,
    history: History,
) -> None:
    """All epochs, or until a callback asks to stop."""
    if hooks.begin(trainer):
        return
    not_finite = _not_finite(trainer.net)
    for epoch in range(epochs):
        begin = time.perf_counter()
        if hooks.call("on_epoch_begin", epoch):
            return
        trainer.net.reset_state()
        bar.begin(epoch)
        title = f"epoch {epoch + 1} of {epochs}"
        logs, samples, stop = _train_epoch(trainer, source, title, hooks, bar)
        # The last step of an epoch may have spoilt weights, and no loss has seen that yet.
        for name in _not_finite(trainer.net):
            if name not in not_finite:
                raise FloatingPointError(
                    f"[fit] expected finite weights, got nan or inf in {name} after {title}: try a smaller lr"
                )
        if validation is not None:
            trainer.net.eval()
            with _validation_named(title):
                scores = _scores("fit: validation_data", trainer.net, validation, trainer.loss, title=title)
            trainer.net.train()
            logs.update({f"val_{name}": value for name, value in scores.items()})
        bar.end(samples, logs)
        history.append(logs, time.perf_counter() - begin)
        if hooks.call("on_epoch_end", epoch, logs) or stop:
            return


def _not_finite(net: Layer) -> list[str]:
    """The names of parameters with values that are not finite."""
    return [name for name, parameter in net.parameters().items() if not np.isfinite(parameter.data).all()]


@contextmanager
def _validation_named(title: str) -> Iterator[None]:
    """Errors of the library's own say that they come of validation data."""
    try:
        yield
    except (TypeError, ValueError) as error:
        own = type(error) in (TypeError, ValueError, _core.ShapeError) and str(error).startswith("[")
        if own and "validation_data" not in str(error):
            raise type(error)(f"{error} (in validation_data, after {title})") from error
        raise


def _train_epoch(
    trainer: Trainer, source: Source, title: str, hooks: CallbackList, bar: _progress.Progress
) -> tuple[dict[str, float], int, bool]:
    """One epoch: its mean loss and accuracy, the number of samples, and whether a callback asked to stop."""
    total, weights, rows, correct, batch, stop = 0.0, 0, 0, 0, 0, False
    each_batch = hooks.has("on_batch_end")
    clock = time.perf_counter
    due = clock() + _progress.INTERVAL

    def logs() -> dict[str, float]:
        # A batch without labels makes last_correct -1, so that any such epoch ends below zero: no accuracy.
        return {"loss": total / weights, **({"accuracy": correct / weights} if correct >= 0 else {})}

    try:
        for loss, batch_rows in source.steps(trainer):
            counted = trainer.last_counted
            weight = batch_rows if counted < 0 else counted  # the loss is a mean over the labels that count
            total += loss * weight
            weights += weight
            rows += batch_rows
            batch_correct = trainer.last_correct
            correct = correct + batch_correct if batch_correct >= 0 <= correct else -1
            batch += 1
            if each_batch and hooks.call("on_batch_end", batch - 1, {"loss": loss, "size": batch_rows}):
                stop = True
                break
            if clock() >= due:
                bar.update(rows, logs())
                due = clock() + _progress.INTERVAL
    except FloatingPointError as error:
        raise FloatingPointError(f"{error} ({title}, batch {batch + 1})") from error
    if rows == 0:
        raise ValueError(f"[fit] expected data in {title}, got no batches")
    return logs(), rows, stop


def _scores(
    where: str, net: Layer, source: Source, loss: Loss, batch_size: int = EVALUATION_BATCH, title: str = ""
) -> dict[str, float]:
    """Mean loss, and accuracy where targets are labels."""
    with states_put_aside(net):
        return _scores_of_walk(where, net, source, loss, batch_size, title)


def _scores_of_walk(
    where: str, net: Layer, source: Source, loss: Loss, batch_size: int, title: str
) -> dict[str, float]:
    total, weights, correct, labels, rows = 0.0, 0, 0, 0, 0
    for number, (x, y, mask) in enumerate(source.batches(), start=1):
        output = Layer.predict(net, x, batch_size, mask=mask)  # a subclass may have a predict of its own
        weight = len(y)
        if y.dtype == np.int64 and isinstance(loss, (_core.CrossEntropyLoss, _core.NLLLoss)):
            correct += _core.count_correct(output, y, loss.axis, loss.ignore_index)
            weight = y.size - int(np.count_nonzero(y == loss.ignore_index))
            labels += weight
        value = loss(output, y)
        if not math.isfinite(value):
            place = f"batch {number}, rows {rows} to {rows + len(y) - 1}{', ' + title if title else ''}"
            cause = "" if np.isfinite(x).all() else ": x has values that are not finite"
            raise FloatingPointError(f"[{where}] expected a finite loss, got {value} in {place}{cause}")
        total += value * weight
        weights += weight
        rows += len(y)
    if weights == 0:
        raise ValueError(f"[{where}] expected data, got no rows")
    return {"loss": total / weights, **({"accuracy": correct / labels} if labels else {})}


def _no_padding(where: str, lengths: ArrayLike | None, mask: ArrayLike | None) -> None:
    if lengths is not None or mask is not None:
        raise ValueError(
            f"[{where}] expected batches (x, y, lengths) in an iterable, got lengths or a mask as an argument"
        )


def _choose_loss(where: str, loss: Loss | str | None, y: ArrayLike | None) -> Loss:
    if isinstance(loss, Loss):
        return loss
    if loss is None:
        targets = None if y is None else as_array(where, "y", y)
        if targets is not None and targets.dtype.kind == "f":
            return _core.MSELoss()
        if targets is not None and targets.dtype.kind == "b" and targets.shape[1:2] == (1,):
            raise ValueError(
                f"[{where}] expected targets of two classes or more for cross entropy, which is the default loss, got "
                f"bool of shape {targets.shape}: pass loss='bce_with_logits', or 'mse'"
            )
        return _core.CrossEntropyLoss()
    if isinstance(loss, str) and loss in _LOSSES:
        return _LOSSES[loss]()
    raise (ValueError if isinstance(loss, str) else TypeError)(
        f"[{where}] expected loss to be a Loss or one of {sorted(_LOSSES)}, got {loss!r}"
    )


def _choose_optimizer(optimizer: Optimizer | str | None) -> Optimizer:
    if isinstance(optimizer, Optimizer):
        return optimizer
    if optimizer is None:
        return _OPTIMIZERS["sgd"]()
    if isinstance(optimizer, str) and optimizer in _OPTIMIZERS:
        return _OPTIMIZERS[optimizer]()
    raise (ValueError if isinstance(optimizer, str) else TypeError)(
        f"[fit] expected optimizer to be an Optimizer or one of {sorted(_OPTIMIZERS)}, got {optimizer!r}"
    )


def _checked_metadata(metadata: Any) -> dict[str, str]:
    if not isinstance(metadata, Mapping):
        raise TypeError(f"[save] expected metadata to be a dictionary of texts by name, got {metadata!r}")
    for name, text in metadata.items():
        if not isinstance(name, str) or not isinstance(text, str):
            raise TypeError(f"[save] expected metadata to be texts by name, got {name!r}: {text!r}")
        try:
            (name + text).encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"[save] expected metadata that UTF-8 can hold, got {name!r} with {error}") from None
    return dict(metadata)
