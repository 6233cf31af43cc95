"""Random numbers of a host's run: by step, exact to resume anywhere, or the host's own streams.

Drawn by step, the order of an epoch is one permutation of all samples. Batch n of all processes
together is its n-th piece, so N processes with batch b see in a step what one with batch N b sees.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from turbotrain_plugin.balancing.processes import process_count
from turbotrain_plugin.data.loader import prepare_worker
from turbotrain_plugin.engine import exchange
from turbotrain_plugin.engine.assembly import derive_seed


def seed_all(seed: int) -> None:
    """Seed Python, numpy and torch, as CooPre's train.py does."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the hosts draw from the global stream
    torch.manual_seed(seed)


def streams() -> dict[str, Any]:
    """Return the state of all streams, loadable with ``weights_only=True``."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    del kind
    return {
        "python": random.getstate(),
        "numpy": [torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_streams(state: dict[str, Any]) -> None:
    """Take up what ``streams`` returned."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    keys, *rest = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


class SeededSamples(Dataset[Any]):
    """A host's data set whose samples draw from streams that epoch and index alone decide.

    Args:
        dataset: The host's.
        parts: What else the seed depends on.
    """

    def __init__(self, dataset: Any, *parts: int | str) -> None:  # noqa: ANN401 - a host's
        self._dataset = dataset
        self._parts = parts

    def __getitem__(self, key: tuple[int, int]) -> Any:  # noqa: ANN401 - a host's sample
        epoch, index = key
        seed_all(derive_seed(*self._parts, "sample", epoch, index))
        return self._dataset[index]


class EpochOrder(Sampler[list[tuple[int, int]]]):
    """This process's batches of an epoch as lists of (epoch, index), shuffled by seed and epoch.

    All processes have equally many; samples that make no batch for each are left out.

    Args:
        samples: Samples of the data set.
        batch_size: Samples per batch of this process.
        epoch: Which epoch.
        start: Batches that are done.
        parts: What else the seed depends on.
    """

    def __init__(
        self, samples: int, batch_size: int, epoch: int, start: int, *parts: int | str
    ) -> None:
        generator = torch.Generator().manual_seed(derive_seed(*parts, "order", epoch))
        order: list[int] = torch.randperm(samples, generator=generator).tolist()
        rank, processes = exchange.rank(), process_count()
        piece = batch_size * processes
        self._batches = [
            [(epoch, index) for index in order[first + rank : first + piece : processes]]
            for first in range(0, samples - piece + 1, piece)
        ][start:]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return iter(self._batches)


def seeded_loader(
    dataset: Any,  # noqa: ANN401 - a host's
    batch_size: int,
    epoch: int,
    start: int,
    workers: int,
    *parts: int | str,
) -> DataLoader[Any]:
    """Return this process's rest of an epoch, the same whenever it is asked for.

    Args:
        dataset: The host's.
        batch_size: Samples per batch of this process.
        epoch: Which epoch.
        start: Batches that are done.
        workers: Processes.
        parts: What the seed depends on, beside epoch and index.
    """
    return DataLoader(
        SeededSamples(dataset, *parts),
        batch_sampler=EpochOrder(len(dataset), batch_size, epoch, start, *parts),
        num_workers=workers,
        collate_fn=dataset.collate_batch_train,
        worker_init_fn=prepare_worker,
    )


def walk(loader: DataLoader[Any]) -> Generator[Any, None, None]:
    """Yield a loader's batches; close it to end the loader's processes, in the middle too.

    They are deaf to SIGTERM, by which Python would end at exit those of a walk that was left.
    """
    batches = iter(loader)
    try:
        yield from batches
    finally:
        shut_down = getattr(batches, "_shutdown_workers", None)  # torch has no public way
        if shut_down is not None:
            shut_down()
