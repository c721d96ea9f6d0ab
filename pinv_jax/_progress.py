"""Progress that the host shows between chunks of work: `Meter`, `fit_progress` and `solve_progress`."""

import sys
import time
from collections.abc import Callable
from typing import Any


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class Meter:
    """A progress meter. On a terminal it rewrites one line; elsewhere it writes a line every few seconds.

    Usable as a context manager. The rate counts from the first to the last update, so that compilation, which comes
    before the first, does not spoil the estimate of the time that is left.

    Args:
        label: what is being done.
        total: how many units of work there are.
        stream: a text stream; `"stderr"` is what `sys.stderr` is at this moment, `None` is silent.
        interval: seconds between two writes, default 0.1 on a terminal and 5 elsewhere.
    """

    def __init__(self, label: str, total: int, stream: Any = "stderr", interval: float | int | None = None):
        self.label, self.total = label, total
        self.stream = sys.stderr if stream == "stderr" else stream
        self._terminal = self.stream is not None and self.stream.isatty()
        self._interval = interval if interval is not None else (0.1 if self._terminal else 5.0)
        self._start = time.monotonic()
        self._first: tuple[float, int] | None = None
        self._written = float("-inf")
        self._line = ""  # the latest state; what is on the stream may be older
        self._pending = False
        self._width = 0

    def update(self, done: int, /, **numbers: Any) -> None:
        """Says that `done` units are finished; `numbers` are shown beside it."""
        now = time.monotonic()
        if self._first is None:
            self._first = (now, done)
        since, base = self._first
        rate = (done - base) / (now - since) if done > base and now > since else None
        parts = [f"{self.label} {done}/{self.total}"]
        if self._terminal:
            filled = round(20 * min(done, self.total) / max(self.total, 1))
            parts.insert(0, "[" + "#" * filled + "." * (20 - filled) + "]")
        if rate is not None:
            parts.append(f"{rate:.3g}/s, {_clock((self.total - done) / rate)} left")
        parts += [f"{name} {float(number):.4g}" for name, number in numbers.items()]
        self._line, self._pending = "  ".join(parts), True
        if now - self._written >= self._interval:
            self._write(now)

    def _write(self, now: float) -> None:
        if self.stream is None or not self._pending:
            return
        if self._terminal:  # blanks overwrite what is left of a longer line
            self.stream.write("\r" + self._line.ljust(self._width))
            self._width = len(self._line)
        else:
            self.stream.write(self._line + "\n")
        self.stream.flush()
        self._written, self._pending = now, False

    def close(self) -> None:
        """Writes the last state with the time it took, and ends the line."""
        if self._line and self.stream is not None:
            self._line, self._pending = f"{self._line}  in {_clock(time.monotonic() - self._start)}", True
            self._write(time.monotonic())
            if self._terminal:
                self.stream.write("\n")
                self.stream.flush()
        self._line = ""

    def __enter__(self) -> "Meter":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def fit_progress(stream: Any = "stderr", interval: float | int | None = None) -> Callable[..., None]:
    """A callable `progress(stage, done, total, loss)` for `learn.fit`: one `Meter` per stage; arguments as there."""
    meter: Meter | None = None

    def progress(stage: str, done: int, total: int, loss: Any) -> None:
        nonlocal meter
        if meter is None or (meter.label, meter.total) != (stage, total):
            if meter is not None:
                meter.close()
            meter = Meter(stage, total, stream, interval)
        meter.update(done, loss=loss)
        if done >= total:
            meter.close()
            meter = None

    return progress


def solve_progress(
    label: str = "solve", stream: Any = "stderr", interval: float | int | None = None
) -> Callable[..., None]:
    """A callable `progress(done, live, total)` for `solve_batch` and `solve_stream`: a `Meter`; arguments as there."""
    meter: Meter | None = None

    def progress(done: int, live: int, total: int | None) -> None:
        nonlocal meter
        if meter is None:
            meter = Meter(label, done + live if total is None else total, stream, interval)
        meter.total = max(meter.total, done + live)  # of a stream whose end is not known
        meter.update(done, live=live)
        if done == total:
            meter.close()
            meter = None

    return progress
