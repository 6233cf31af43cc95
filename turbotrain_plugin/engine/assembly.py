"""From a configuration to objects: device, data roots, data sets, network, learners."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

import torch

from turbotrain_plugin.config import RunConfig
from turbotrain_plugin.data import CooperativeDataset
from turbotrain_plugin.engine.records import Steps
from turbotrain_plugin.errors import UserError
from turbotrain_plugin.evaluation.protocol import RECORDING_HZ
from turbotrain_plugin.geometry.grid import BevGrid
from turbotrain_plugin.models import CooperativeNetwork, build_model
from turbotrain_plugin.synthetic import ensure_dataset

SYNTHETIC: Final = "synthetic:"
_SPLIT_FOLDERS: Final = {"train": ("train",), "validate": ("val", "validate"), "test": ("test",)}


def derive_seed(*parts: int | str) -> int:
    """Return a 63-bit seed that depends on every part, the same in every process and version."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def pick_device(name: str) -> torch.device:
    """Return the device for ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        UserError: When it does not exist on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device must be auto, cpu, cuda or cuda:N. Found {name!r}.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {name}: this torch sees no CUDA device; see `opencood doctor`.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: there are {torch.cuda.device_count()} CUDA devices.")
    return device


def split_entries(config: RunConfig, split: str) -> tuple[tuple[str, ...], str]:
    """Return the folders of a split and the split's name in them.

    Without ``test_dir`` the validation split stands in for the test split.

    Raises:
        UserError: When nothing is configured.
    """
    if split == "train":
        entries, key = config.root_dir, "root_dir"
    elif split == "validate" or not config.test_dir:
        entries, key, split = config.validate_dir, "validate_dir", "validate"
    else:
        entries, key = config.test_dir, "test_dir"
    if not entries:
        raise UserError(f"{key} is empty: give a folder, or synthetic:tiny for made-up scenes.")
    return entries, split


def resolve_roots(entries: tuple[str, ...], split: str) -> list[Path]:
    """Return the existing folders of a split.

    An entry is the split's own folder (OpenCOOD's habit), a root that holds ``train``, ``val`` or
    ``validate`` and ``test``, or ``synthetic:<preset>``, which is made on first use.

    Raises:
        UserError: When a folder does not exist.
    """
    roots = []
    for entry in entries:
        if entry.startswith(SYNTHETIC):
            # Synthetic scenes do not follow the run's seed: seeds are compared on the same scenes.
            preset = entry.removeprefix(SYNTHETIC)
            path = ensure_dataset(preset, seed=0, progress=Steps(f"making {entry}"))
        else:
            path = Path(entry).expanduser()
        if not path.is_dir():
            raise UserError(f"{entry}: there is no such data folder.")
        found = [path / name for name in _SPLIT_FOLDERS[split] if (path / name).is_dir()]
        roots.append(found[0] if found else path)
    return roots


def build_dataset(config: RunConfig, split: str, purpose: str) -> CooperativeDataset:
    """Return the data set of a split (``train``, ``validate``, ``test``) for a purpose."""
    entries, name = split_entries(config, split)
    return CooperativeDataset(config, resolve_roots(entries, name), split=name, purpose=purpose)


def build_network(config: RunConfig, dataset: CooperativeDataset) -> CooperativeNetwork:
    """Return a freshly initialised network; the same seed gives the same weights."""
    return new_network(config, dataset.grid)


def new_network(config: RunConfig, grid: BevGrid) -> CooperativeNetwork:
    """Return a freshly initialised network on a grid; the same seed gives the same weights."""
    torch.manual_seed(derive_seed(config.seed, "weights"))
    return build_model(
        config.model.args,
        grid,
        hist_frames=config.turbotrain.data.hist_frames,
        future_steps=config.turbotrain.data.future_steps,
        anchors_per_cell=len(config.postprocess.anchor_args.r),
        frame_interval_s=config.turbotrain.data.step_frames / RECORDING_HZ,
    )


def prepare_torch(config: RunConfig) -> None:
    """Apply the thread count and the determinism switch."""
    if config.turbotrain.threads > 0:
        torch.set_num_threads(config.turbotrain.threads)
    if config.turbotrain.deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)
