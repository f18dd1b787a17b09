"""What may happen between batches and epochs of ``fit``.

A callback is a function ``callback(epoch, logs)``, called after each epoch, or an object with any of these
methods, each optional:

=============================== ==========================================================
``on_fit_begin(trainer)``       before the first epoch; ``trainer`` has net, loss, optimizer
``on_epoch_begin(epoch)``       before each epoch, counted from 0
``on_batch_end(batch, logs)``   after each batch; ``logs`` has "loss" and "size" of that batch
``on_epoch_end(epoch, logs)``   after each epoch; ``logs`` has what goes into the history
``on_fit_end(history)``         at the end, also one by an exception
=============================== ==========================================================

Training stops when ``on_batch_end``, ``on_epoch_end`` or the function returns True, or raises
:class:`StopTraining`.

>>> import numpy as np
>>> from deepnet import callbacks, nn
>>> x, y, net = np.eye(4), np.arange(4), nn.Sequential(nn.Linear(4, 4))
>>> stopping = callbacks.EarlyStopping(patience=3)
>>> history = net.fit(x, y, epochs=50, validation_data=(x, y), callbacks=[stopping], progress=False)
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from deepnet._core import Trainer
    from deepnet._fit import History

__all__ = ["Callback", "Checkpoint", "EarlyStopping", "LearningRateSchedule", "StopTraining", "cosine_decay"]

Logs: TypeAlias = Mapping[str, float]
CallbackLike: TypeAlias = object | Callable[[int, Logs], object]

_HOOKS = ("on_fit_begin", "on_epoch_begin", "on_batch_end", "on_epoch_end", "on_fit_end")


class StopTraining(Exception):  # noqa: N818 - a wish, no error
    """Raised by a callback to end ``fit`` in good order.

    Examples
    --------
    >>> import numpy as np
    >>> from deepnet import callbacks, nn
    >>> def stop_after_two(epoch, logs):
    ...     if epoch == 1:
    ...         raise callbacks.StopTraining
    >>> net = nn.Linear(4, 4)
    >>> net.fit(np.eye(4), np.arange(4), epochs=50, callbacks=stop_after_two, progress=False).epochs
    2
    """


class Callback:
    """A base to derive from, if you like one; any object with one of the hooks will do.

    Examples
    --------
    >>> import numpy as np
    >>> from deepnet import callbacks, nn
    >>> class CountBatches(callbacks.Callback):
    ...     batches = 0
    ...     def on_batch_end(self, batch, logs):
    ...         self.batches += 1
    >>> count = CountBatches()
    >>> history = nn.Linear(4, 4).fit(np.eye(4), np.arange(4), batch_size=3, callbacks=count, progress=False)
    >>> count.batches
    2
    """


class CallbackList:
    """Callbacks sorted by hook, so that training pays only for those that are defined."""

    def __init__(self, callbacks: CallbackLike | Iterable[CallbackLike]) -> None:
        items = list(callbacks) if isinstance(callbacks, Iterable) else [callbacks]
        self._hooks: dict[str, list[Callable[..., object]]] = {name: [] for name in _HOOKS}
        for item in items:
            found = [name for name in _HOOKS if callable(getattr(item, name, None))]
            for name in found:
                self._hooks[name].append(getattr(item, name))
            if found or isinstance(item, Callback):
                continue
            if not callable(item):
                raise TypeError(f"[fit] expected callbacks to be functions or to have one of {_HOOKS}, got {item!r}")
            self._hooks["on_epoch_end"].append(item)

    def has(self, hook: str) -> bool:
        """Whether any callback defines `hook`."""
        return bool(self._hooks[hook])

    def call(self, hook: str, *arguments: object) -> bool:
        """Call `hook` of every callback; True if one of them asks to stop."""
        stop = False
        for function in self._hooks[hook]:
            try:
                stop |= function(*arguments) is True
            except StopTraining:
                stop = True
        return stop


class EarlyStopping(Callback):
    """Stop when a figure has not improved for some epochs.

    Parameters
    ----------
    monitor
        Name in the history: "val_loss", "loss", "val_accuracy", ... Accuracies should rise, others fall.
    patience
        Epochs without improvement before training stops.
    min_delta
        The least change that counts as improvement.
    restore_best
        Put the weights of the best epoch back at the end.

    Attributes
    ----------
    best_epoch
        The epoch with the best figure, counted from 0; -1 before any.

    Raises
    ------
    ValueError
        `patience` is below 1; in fit, `monitor` is not in the history.

    References
    ----------
    Prechelt 1998, "Early stopping - but when?".

    Examples
    --------
    >>> import numpy as np
    >>> from deepnet import callbacks, nn, optim
    >>> stopping = callbacks.EarlyStopping("loss", patience=2, min_delta=100.0)
    >>> x, y, net = np.eye(4), np.arange(4), nn.Linear(4, 4)
    >>> history = net.fit(x, y, epochs=50, callbacks=stopping, progress=False)
    >>> history.epochs, stopping.best_epoch
    (3, 0)
    """

    def __init__(
        self, monitor: str = "val_loss", patience: int = 3, min_delta: float = 0.0, restore_best: bool = True
    ) -> None:
        if patience < 1:
            raise ValueError(f"[EarlyStopping] expected patience >= 1, got {patience}")
        self.patience = patience
        self.min_delta = min_delta
        self.restore_best = restore_best
        self.best_epoch = -1
        self._best = _Best(monitor)
        self._weights: dict[str, NDArray[np.float32]] | None = None

    def on_fit_begin(self, trainer: Trainer) -> None:
        """Start afresh."""
        self._net = trainer.net
        self.best_epoch = -1
        self._best.reset()
        self._weights = None

    def on_epoch_end(self, epoch: int, logs: Logs) -> bool:
        """Ask to stop after `patience` epochs without improvement."""
        if self._best.improves(logs, self.min_delta):
            self.best_epoch = epoch
            if self.restore_best:
                self._weights = self._net.state_dict()
        return epoch - self.best_epoch >= self.patience

    def on_fit_end(self, history: History) -> None:
        """Put the best weights back, if asked to."""
        if self._weights is not None:
            self._net.load_state_dict(self._weights)
            self._weights = None


class Checkpoint(Callback):
    """Save the network, with its optimizer's state, after each epoch or after each best one.

    Parameters
    ----------
    path
        File to write. It is replaced whole: a crash leaves the old one or the new one.
    monitor
        Save only when this figure of the history is the best so far; None saves after every epoch.

    Raises
    ------
    OSError
        In fit: the file cannot be written.
    ValueError
        In fit: `monitor` is not in the history.

    Examples
    --------
    >>> import numpy as np
    >>> import deepnet as dn
    >>> from deepnet import callbacks, nn
    >>> net, best = nn.Sequential(nn.Linear(4, 4)), callbacks.Checkpoint("best.safetensors", monitor="loss")
    >>> history = net.fit(np.eye(4), np.arange(4), callbacks=best, progress=False)
    >>> dn.load("best.safetensors")
    Sequential(
      (0): Linear(bias=True, in_features=4, out_features=4)
    )
    """

    def __init__(self, path: str | os.PathLike[str], monitor: str | None = None) -> None:
        self.path = path
        self._best = _Best(monitor) if monitor is not None else None

    def on_fit_begin(self, trainer: Trainer) -> None:
        """Remember what to save; forget the best figure of an earlier fit."""
        self._trainer = trainer
        if self._best is not None:
            self._best.reset()

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Save, if this epoch is the best so far or all are wanted."""
        if self._best is None or self._best.improves(logs):
            self._trainer.net.save(self.path, optimizer=self._trainer.optimizer)


class LearningRateSchedule(Callback):
    """Set the learning rate of each epoch to ``schedule(epoch, lr)``, lr being that which fit began with.

    At the end of fit the optimizer has that one again.

    Parameters
    ----------
    schedule
        Function of the epoch, counted from 0, and of lr.

    Examples
    --------
    >>> import numpy as np
    >>> from deepnet import callbacks, nn, optim
    >>> halve = callbacks.LearningRateSchedule(lambda epoch, lr: lr * 0.5**epoch)
    >>> opt, rates = optim.SGD(lr=0.1), []
    >>> record = lambda epoch, logs: rates.append(opt.lr)
    >>> history = nn.Linear(4, 4).fit(
    ...     np.eye(4), np.arange(4), optimizer=opt, epochs=3, callbacks=[halve, record], progress=False
    ... )
    >>> rates, opt.lr
    ([0.1, 0.05, 0.025], 0.1)
    """

    def __init__(self, schedule: Callable[[int, float], float]) -> None:
        self.schedule = schedule

    def on_fit_begin(self, trainer: Trainer) -> None:
        """Remember the learning rate that fit began with."""
        optimizer: Any = trainer.optimizer  # each has lr, whatever else it has
        self._optimizer = optimizer
        self._lr = float(optimizer.lr)

    def on_epoch_begin(self, epoch: int) -> None:
        """Set the epoch's learning rate."""
        self._optimizer.lr = float(self.schedule(epoch, self._lr))

    def on_fit_end(self, history: History) -> None:
        """Put the first learning rate back."""
        self._optimizer.lr = self._lr


def cosine_decay(epochs: int) -> LearningRateSchedule:
    """Half a cosine, from lr in the first epoch towards 0 after the last: lr_e = lr (1 + cos(pi e / epochs)) / 2.

    Parameters
    ----------
    epochs
        Those of fit; a longer fit goes on with 0.

    References
    ----------
    Loshchilov and Hutter 2017, "SGDR: stochastic gradient descent with warm restarts", eq. 5, without restarts.

    Examples
    --------
    >>> from deepnet import callbacks
    >>> schedule = callbacks.cosine_decay(4).schedule
    >>> [round(schedule(epoch, 0.1), 4) for epoch in range(5)]
    [0.1, 0.0854, 0.05, 0.0146, 0.0]
    """
    return LearningRateSchedule(lambda epoch, lr: lr * (1.0 + math.cos(math.pi * min(epoch / epochs, 1.0))) / 2.0)


class _Best:
    """The best value so far of one figure of the logs."""

    def __init__(self, monitor: str) -> None:
        self.monitor = monitor
        self.sign = -1.0 if monitor.endswith("accuracy") else 1.0
        self.reset()

    def reset(self) -> None:
        self.value = math.inf

    def improves(self, logs: Logs, min_delta: float = 0.0) -> bool:
        if self.monitor not in logs:
            raise ValueError(f"[callbacks] expected to monitor one of {sorted(logs)}, got {self.monitor!r}")
        value = self.sign * logs[self.monitor]
        if not value < self.value - min_delta:
            return False
        self.value = value
        return True
