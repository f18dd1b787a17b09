"""The progress bar of ``fit``: one bar an epoch on a terminal, one line an epoch in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tqdm import tqdm

INTERVAL = 0.1  # seconds between two drawings: often enough to look alive, too seldom to cost anything
# What matters least comes last, where a narrow terminal cuts.
_FORMAT = "{desc} {percentage:3.0f}%|{bar:10}| {rate_fmt}{postfix} [{remaining}]"
_FORMAT_OF_UNKNOWN_LENGTH = "{desc} {n_fmt} samples, {rate_fmt}{postfix}"


def format_logs(logs: Mapping[str, float]) -> str:
    """``loss 0.5312, accuracy 0.8123``"""
    return ", ".join(f"{name} {value:{'.2e' if 0 < abs(value) < 1e-3 else '.4f'}}" for name, value in logs.items())


class Progress:
    """Draws the progress of training; does nothing where `enabled` is false."""

    def __init__(self, enabled: bool, epochs: int, samples: int | None) -> None:
        self._stream = sys.stderr if enabled else None
        # Notebooks show carriage returns well although their stderr is no terminal.
        on_terminal = getattr(self._stream, "isatty", bool)()  # streams of hosts may have nothing but write
        self._live = self._stream is not None and (on_terminal or "ipykernel" in sys.modules)
        self._epochs = epochs
        self._samples = samples
        self._bar: tqdm | None = None
        self._begin = 0.0

    @contextmanager
    def _drawing(self) -> Iterator[None]:
        """A line that cannot be written, on a full disk for one, is the last: training goes on."""
        try:
            yield
        except (OSError, ValueError):  # ValueError: a closed stream
            self._stream, self._live, self._bar = None, False, None

    def begin(self, epoch: int) -> None:
        with self._drawing():
            self._begin_epoch(epoch)

    def _begin_epoch(self, epoch: int) -> None:
        self._title = f"epoch {epoch + 1}/{self._epochs}"
        self._begin = time.perf_counter()
        if self._live:
            import shutil

            from tqdm import tqdm

            # tqdm asks the terminal itself, and draws nothing where that says, as some do, that its size is 0.
            columns, rows = shutil.get_terminal_size()
            self._bar = tqdm(
                total=self._samples,
                desc=self._title,
                unit=" samples",
                unit_scale=True,
                file=self._stream,
                mininterval=0.0,
                bar_format=_FORMAT if self._samples is not None else _FORMAT_OF_UNKNOWN_LENGTH,
                ncols=columns,
                nrows=rows,
            )

    def update(self, samples: int, logs: Mapping[str, float]) -> None:
        """Tell how far this epoch has come."""
        with self._drawing():
            if self._bar is not None:
                self._bar.set_postfix_str(format_logs(logs), refresh=False)
                self._bar.update(samples - self._bar.n)

    def end(self, samples: int, logs: Mapping[str, float]) -> None:
        """Finish the epoch's bar or line with its final figures."""
        if self._bar is not None:
            # The last drawing stays: whole, on two lines if need be.
            self._bar.ncols = None
            self._bar.bar_format = str(self._bar.bar_format).replace(" [{remaining}]", "")
            self.update(samples, logs)
        elif self._stream is not None:
            rate = samples / max(time.perf_counter() - self._begin, 1e-9)
            with self._drawing():
                print(f"{self._title}: {format_logs(logs)}, {rate:.0f} samples/s", file=self._stream)
                getattr(self._stream, "flush", bool)()
        self.close()

    def close(self) -> None:
        """Leave the terminal in order; called on every way out."""
        with self._drawing():
            if self._bar is not None:
                self._bar.close()
        self._bar = None
