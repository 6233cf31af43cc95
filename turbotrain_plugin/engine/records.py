"""What a run leaves behind while it goes: folder, log lines, metrics.jsonl, TensorBoard."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import torch
from tqdm import tqdm

import turbotrain_plugin
from turbotrain_plugin.balancing import BalanceRecord, BalanceWindow
from turbotrain_plugin.config import RunConfig, to_yaml
from turbotrain_plugin.engine.checkpoints import atomic_write
from turbotrain_plugin.errors import UserError

LOG: Final = logging.getLogger("turbotrain_plugin")
METRICS: Final = "metrics.jsonl"
_PACKAGES: Final = ("torch", "numpy", "scipy", "spconv", "shapely", "matplotlib", "torchjd")


def make_run_folder(config: RunConfig) -> Path:
    """Create ``<log_dir>/<name>_<time>`` with config.yaml and env.json; never reuses a folder.

    Raises:
        UserError: When the file system refuses.
    """
    folder = new_folder(Path(config.turbotrain.logging.log_dir), config.name)
    write_text(folder / "config.yaml", to_yaml(config))
    write_json(folder / "env.json", environment())
    return folder


def new_folder(parent: Path, name: str) -> Path:
    """Create ``<parent>/<name>_<time>``; never reuses a folder.

    Raises:
        UserError: When the file system refuses.
    """
    stem = f"{name}_{datetime.now():%Y_%m_%d_%H_%M_%S}"
    for attempt in range(100):
        folder = parent / (stem if attempt == 0 else f"{stem}_{attempt}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(
                f"{folder}: the run folder cannot be made ({error.strerror}). "
                "Set turbotrain.logging.log_dir to a folder that can be written."
            ) from error
        return folder
    raise FileExistsError(stem)


def environment() -> dict[str, Any]:
    """Return what somebody needs to know to repeat the run."""
    versions = {name: version_of(name) for name in _PACKAGES}
    cuda = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {
        "turbotrain_plugin": turbotrain_plugin.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.machine(),
        "cpus": os.cpu_count(),
        "cuda_device": cuda,
        "packages": versions,
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def version_of(package: str) -> str | None:
    """Return the version of an installed package, None when it is absent."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    atomic_write(path, lambda file: _discard(file.write(text.encode("utf-8"))))


def _discard(_: object) -> None:
    return None


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(value, indent=2, default=str) + "\n")


def emit(text: str) -> None:
    """Write a result (a table, a path) to standard output."""
    sys.stdout.write(text.rstrip("\n") + "\n")
    sys.stdout.flush()


class MetricsLog:
    """Append-only ``metrics.jsonl`` that a run cuts back to the checkpoint it goes on from.

    Lines after that checkpoint are of steps that will be taken again. A run without a checkpoint
    starts from the first step, so nothing is kept of one that was killed before its first.

    Raises:
        UserError: When the file system refuses, here and in every method.
    """

    def __init__(self, folder: Path, keep_bytes: int = 0) -> None:
        self._path = folder / METRICS
        with self._refusals():
            self._file = self._path.open("ab")
            if self._file.tell() > keep_bytes:
                self._file.truncate(keep_bytes)
                self._file.seek(0, os.SEEK_END)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one line."""
        line = json.dumps(record, separators=(",", ":"), allow_nan=False)
        with self._refusals():
            self._file.write(line.encode("utf-8") + b"\n")

    def position(self) -> int:
        """Flush to the disk and return the size in bytes."""
        with self._refusals():
            self._file.flush()
            os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Flush and close; lines that the disk refuses are lost, and were not checkpointed."""
        with contextlib.suppress(OSError):
            self._file.close()

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"{self._path}: cannot be written ({error.strerror}).") from error


class Board:
    """TensorBoard scalars; silent when switched off or not installed."""

    def __init__(self, folder: Path, *, enabled: bool, purge_step: int | None = None) -> None:
        self._writer: Any = None
        if not enabled:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            LOG.warning("TensorBoard is not installed; `pip install tensorboard` to get events.")
            return
        self._writer = SummaryWriter(str(folder), purge_step=purge_step)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write finite scalars."""
        if self._writer is None:
            return
        for name, value in values.items():
            if math.isfinite(value):
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close."""
        if self._writer is not None:
            self._writer.close()


class Progress:
    """A live bar on a terminal; elsewhere a plain line now and then, so that logs stay readable."""

    PLAIN_SECONDS: Final = 10.0

    def __init__(self, title: str, total: int, start: int = 0) -> None:
        self._title = title
        self._total = total
        self._done = start
        self._begin = time.monotonic()
        self._start = start
        self._last = self._begin
        self._bar: tqdm[Any] | None = None
        if sys.stderr.isatty() and LOG.isEnabledFor(logging.INFO):
            self._bar = tqdm(total=total, initial=start, desc=title, unit="step", leave=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def advance(self, text: str = "") -> None:
        """Count one step; ``text`` holds the losses."""
        self._done += 1
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update()
            return
        now = time.monotonic()
        if now - self._last >= self.PLAIN_SECONDS or self._done == self._total:
            self._last = now
            LOG.info(
                "%s  %d/%d  ETA %s  %s", self._title, self._done, self._total, self.eta(), text
            )

    def eta(self) -> str:
        """Return the estimated remaining time."""
        done = max(self._done - self._start, 1)
        seconds = (time.monotonic() - self._begin) / done * (self._total - self._done)
        minutes, rest = divmod(round(seconds), 60)
        return (
            f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
            if minutes >= 60
            else f"{minutes}:{rest:02d}"
        )

    def close(self) -> None:
        """Finish the bar."""
        if self._bar is not None:
            self._bar.close()


def balance_line(record: BalanceRecord, window: BalanceWindow) -> dict[str, Any]:
    """Return the log entries of a balanced or probed step.

    Args:
        record: The step; ``cosine`` is that of its first pair of tasks.
        window: The running figures it counts to.
    """
    entries: dict[str, Any] = {
        "cosines": record.cosine,
        "task_norms": record.norms,
        "conflict_rates": window.conflict_rate,
        "pooled_cosines": window.pooled_cosine,
    }
    if record.weights:
        entries["task_weights"] = record.weights
    if record.modules:
        entries["modules"] = {
            name: {"cosines": part.cosine, "task_norms": part.norms}
            for name, part in record.modules.items()
        }
    for pair, cosine in list(record.cosine.items())[:1]:
        entries["cosine"] = cosine
        entries["conflict_rate"] = window.conflict_rate.get(pair, 0.0)
    return entries


def finite(values: dict[str, float]) -> dict[str, float]:
    """Return the entries that JSON can hold."""
    return {n: v for n, v in values.items() if v == v and abs(v) != float("inf")}


def mean(values: list[float]) -> float | None:
    """Return the mean, None of nothing."""
    return sum(values) / len(values) if values else None


class Steps:
    """A progress bar whose total becomes known with the first report."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._bar: Progress | None = None
        self._done = 0

    def __call__(self, done: int, total: int, text: str) -> None:
        """Show that ``done`` of ``total`` are done; ``text`` names the last."""
        if self._bar is None:
            self._bar = Progress(self._title, total)
        while self._done < done:
            self._done += 1
            self._bar.advance(text)
        if done >= total:
            self._bar.close()
