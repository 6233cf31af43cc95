"""Batches of an epoch in a reproducible order, made by worker processes or in this one.

Samples depend on their key alone (see ``dataset``), so an epoch interrupted after n batches goes
on with batch n bit for bit (``start_batch``), whatever the number of workers. Worker processes stay
from one epoch to the next (``persistent_workers``), with the labels they have read.
"""

from __future__ import annotations

import atexit
import signal
import time
import traceback
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Final, TypeVar, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from turbotrain_plugin.data.dataset import CooperativeDataset, SampleKey
from turbotrain_plugin.data.prepare import PreparedSample, collate
from turbotrain_plugin.errors import UserError
from turbotrain_plugin.structures import Batch

__all__ = ["BatchLoader", "CooperativeDataset", "SampleKey", "collate", "make_loader"]

_T = TypeVar("_T")

# First word of the seed of the order; the data set's own draws use others.
_ORDER_DRAW: Final = 3

_DEAD_WORKER: Final = ("exited unexpectedly", "killed by signal")
"""How DataLoader says that a worker is gone; it left no traceback that could be passed on."""


def make_loader(
    dataset: CooperativeDataset,
    *,
    batch_size: int,
    epoch: int,
    shuffle: bool,
    start_batch: int = 0,
    rank: int = 0,
    world_size: int = 1,
    seed: int = 0,
) -> BatchLoader:
    """Return the batches of one epoch.

    With ``shuffle`` the order is a permutation drawn from (seed, epoch), every rank gets equally
    many samples (the remainder is left out, another one each epoch) and an incomplete last batch is
    dropped if there is more than one. Without it the order is that of the windows, nothing is left
    out or repeated, and ranks may differ by one sample.

    Args:
        dataset: Samples.
        batch_size: Samples per batch of this rank.
        epoch: Number of the epoch.
        shuffle: Whether the order is random.
        start_batch: Batches to skip, to go on inside an epoch.
        rank: Number of this process.
        world_size: Number of processes.
        seed: Seed of the order.

    Returns:
        An iterable of batches; its ``len`` counts the batches of the whole epoch, skipped ones
        included.
    """
    if batch_size < 1 or not 0 <= rank < world_size or start_batch < 0:
        raise ValueError(
            "`batch_size` must be positive, `rank` in range(world_size) and `start_batch` not "
            f"negative. Found {batch_size}, {rank} of {world_size}, {start_batch}."
        )
    order = np.arange(len(dataset))
    if shuffle:
        order = np.random.default_rng([_ORDER_DRAW, seed, epoch]).permutation(order)
        # Fewer samples than ranks: some are seen twice rather than a rank left without work.
        share = max(1, len(order) // world_size)
        order = np.resize(order, share * world_size)
    own = order[rank::world_size]
    batches = [
        [SampleKey(epoch, int(index)) for index in own[start : start + batch_size]]
        for start in range(0, len(own), batch_size)
    ]
    if shuffle and len(batches) > 1 and len(batches[-1]) < batch_size:
        batches.pop()
    return BatchLoader(dataset, batches, start_batch)


class BatchLoader:
    """Batches in a given order; see ``make_loader``.

    Args:
        dataset: Samples.
        batches: Keys of every batch of the epoch.
        start_batch: Batches left out at the start.
    """

    def __init__(
        self, dataset: CooperativeDataset, batches: list[list[SampleKey]], start_batch: int = 0
    ) -> None:
        self._dataset, self._batches, self._start = dataset, batches, start_batch
        self.waited_s = 0.0
        """Time that whoever walks the batches has spent waiting for them."""

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches from ``start_batch`` on.

        Raises:
            UserError: What a sample's files gave rise to, prefixed by the sample.
            RuntimeError: Any other failure, naming the sample and with the worker's traceback.
        """
        wanted = self._batches[self._start :]
        data = self._dataset.config.turbotrain.data
        pin = data.pin_memory and torch.cuda.is_available()
        workers = _workers_of(self._dataset, len(wanted))
        try:
            begin = time.perf_counter()
            batches = workers.walk(wanted)
            for keys in wanted:
                batch = self._next(batches, keys)
                batch = _pinned(batch) if pin else batch
                self.waited_s += time.perf_counter() - begin
                yield batch
                begin = time.perf_counter()
        except RuntimeError:
            _WORKERS.pop(id(self._dataset), None)  # whatever is left of them
            raise
        finally:
            workers.busy = False

    def _next(self, batches: Iterator[Batch | _Failure], keys: list[SampleKey]) -> Batch:
        try:
            batch = next(batches)
        except RuntimeError as error:
            if not any(words in str(error) for words in _DEAD_WORKER):
                raise
            names = ", ".join(self._dataset.describe(key) for key in keys)
            raise RuntimeError(
                f"A loader process died before it delivered {names}; the cause may be that batch "
                "or one prepared ahead of it. Out of memory is the usual reason: lower "
                "turbotrain.data.num_workers or prefetch_factor."
            ) from error
        if isinstance(batch, _Failure):
            message = f"{self._dataset.describe(batch.key)}: {batch.message}"
            raise UserError(message) if batch.user else RuntimeError(message)
        return batch


class _Workers:
    """A ``DataLoader`` that is walked once per epoch, each time over other batches."""

    def __init__(self, dataset: CooperativeDataset, count: int, *, persistent: bool) -> None:
        self._wanted = _Wanted()
        self._walk: Iterator[Any] | None = None
        self.busy = True
        _OPEN.add(self)
        self._loader: DataLoader[Any] = DataLoader(
            _Guarded(dataset),
            batch_sampler=self._wanted,
            num_workers=count,
            collate_fn=_collate_or_fail,
            prefetch_factor=dataset.config.turbotrain.data.prefetch_factor if count else None,
            persistent_workers=persistent and count > 0,
            worker_init_fn=prepare_worker,
            # Samples seed themselves; a private generator keeps the caller's global one untouched.
            generator=torch.Generator().manual_seed(0),
        )

    def walk(self, wanted: list[list[SampleKey]]) -> Iterator[Batch | _Failure]:
        """Return the batches of ``wanted``; what an earlier walk left over is thrown away."""
        self._wanted.batches = wanted
        self._walk = iter(self._loader)
        return self._walk

    def close(self) -> None:
        """End the processes, in the middle of a walk too."""
        shut_down = getattr(self._walk, "_shutdown_workers", None)  # torch has no public way
        if shut_down is not None:
            shut_down()


class _Wanted(Sampler[list[SampleKey]]):
    """The batch sampler of a ``_Workers``: only its list changes from walk to walk."""

    def __init__(self) -> None:
        self.batches: list[list[SampleKey]] = []

    def __iter__(self) -> Iterator[list[SampleKey]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


_MOST_KEPT: Final = 2
"""Data sets whose workers stay: one to train on and one to validate on."""

_WORKERS: Final[OrderedDict[int, tuple[CooperativeDataset, _Workers]]] = OrderedDict()
"""By the data set's identity, which it keeps as long as it is held here."""

_OPEN: Final[weakref.WeakSet[_Workers]] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Workers ignore SIGTERM, by which multiprocessing would end them at exit and wait for ever."""
    for workers in list(_OPEN):
        workers.close()


def _workers_of(dataset: CooperativeDataset, batches: int) -> _Workers:
    """Return idle workers of a data set, kept ones where there are any."""
    data = dataset.config.turbotrain.data
    count = min(data.num_workers, batches)
    if not (data.persistent_workers and count) or count < data.num_workers:
        return _Workers(dataset, count, persistent=False)
    _, kept = _WORKERS.get(id(dataset), (dataset, None))
    if kept is not None and kept.busy:  # two walks at a time
        return _Workers(dataset, count, persistent=False)
    if kept is None:
        kept = _Workers(dataset, count, persistent=True)
        _WORKERS[id(dataset)] = (dataset, kept)
        if len(_WORKERS) > _MOST_KEPT:
            _WORKERS.popitem(last=False)
    _WORKERS.move_to_end(id(dataset))
    kept.busy = True
    return kept


@dataclass(frozen=True, slots=True)
class _Failure:
    """An exception on its way from a worker: DataLoader would bury its text in a traceback."""

    key: SampleKey
    user: bool
    message: str


class _Guarded(Dataset["PreparedSample | _Failure"]):
    """The data set with exceptions as values, so that the main process can name the sample."""

    def __init__(self, dataset: CooperativeDataset) -> None:
        self._dataset = dataset

    def __getitem__(self, key: SampleKey) -> PreparedSample | _Failure:
        try:
            return self._dataset[key]
        except UserError as error:
            return _Failure(key, user=True, message=str(error))
        except Exception:  # reported by BatchLoader
            return _Failure(
                key, user=False, message=f"could not be made.\n{traceback.format_exc()}"
            )


def _collate_or_fail(samples: list[PreparedSample | _Failure]) -> Batch | _Failure:
    for sample in samples:
        if isinstance(sample, _Failure):
            return sample
    return collate(cast("list[PreparedSample]", samples))


def prepare_worker(_worker: int) -> None:
    """Prepare a loader process: one thread, and deaf to the signals that stop a run."""
    torch.set_num_threads(1)
    # Ctrl-C and a scheduler's SIGTERM reach the whole process group. The main process decides what
    # they mean, and needs its workers to finish the step it saves; they end when it is gone.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _pinned(value: _T) -> _T:
    """Return tensors, and dataclasses of them, in page-locked memory: a copy then need not wait."""
    pinned: Any = value
    if isinstance(value, torch.Tensor):
        pinned = value.pin_memory()
    elif is_dataclass(value) and not isinstance(value, type):
        pinned = type(value)(**{f.name: _pinned(getattr(value, f.name)) for f in fields(value)})
    return cast(_T, pinned)
