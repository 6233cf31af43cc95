"""Shims: in force only around a host, and what stands in does the work."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.helpers.made_host import FAKE_HOST
from turbotrain_plugin.cli import main
from turbotrain_plugin.data.formats.writers import WRITERS
from turbotrain_plugin.hosts import HOSTS, host_named
from turbotrain_plugin.hosts.checkout import locate, tree_hash
from turbotrain_plugin.hosts.compat import SHIMS, applied
from turbotrain_plugin.hosts.compat.cosine import CosineSchedule
from turbotrain_plugin.hosts.compat.loading import parsed, read_hypes, safe_load_yaml
from turbotrain_plugin.hosts.compat.missing import DISCO_FUSE
from turbotrain_plugin.hosts.compat.overlaps import bbox_overlaps
from turbotrain_plugin.hosts.compat.packages import StandIn
from turbotrain_plugin.hosts.compat.processes import FORKED_LOADERS
from turbotrain_plugin.hosts.session import enter, said_plainly
from turbotrain_plugin.structures import UserError


def test_everything_is_as_before_afterwards(fake_host: Path) -> None:
    import matplotlib.cm

    def surroundings() -> tuple[object, ...]:
        return (
            {name: getattr(np, name, None) for name in ("Inf", "int", "float", "bool")},
            hasattr(matplotlib.cm, "get_cmap"),
            torch.load,
            torch.nn.functional.pixel_unshuffle,
            {name for name, module in sys.modules.items() if isinstance(module, StandIn)},
            list(sys.path),
            [f for f in sys.meta_path if type(f).__module__.startswith("turbotrain_plugin")],
            sys.dont_write_bytecode,
        )

    before = surroundings()
    with enter(host_named("auto", fake_host), fake_host):
        assert np.Inf == np.inf  # type: ignore[attr-defined]  # noqa: NPY201
        assert sys.dont_write_bytecode
        assert surroundings() != before
    assert surroundings() == before


def test_names_are_unique_and_every_reason_is_a_sentence() -> None:
    assert all(name == shim.name for name, shim in SHIMS.items())
    assert all(shim.reason.endswith(".") for shim in SHIMS.values())


def test_doctor_lists_every_shim(capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor"])
    shown = capsys.readouterr().out
    assert all(f"shim {name}" in shown for name in SHIMS)


def test_a_missing_package_is_named_when_it_is_used_and_not_before() -> None:
    with applied([SHIMS["package.torch_scatter"]]) as names:
        if not names:
            pytest.skip("torch_scatter is installed")
        module = importlib.import_module("torch_scatter.composite")
        at_import: dict[str, object] = {"m": module}
        exec("made = m.Softmax(dim=1)\nclass Own(m.Base): pass", at_import)
        with pytest.raises(UserError, match="pip install torch_scatter"):
            module.scatter(1)
        own = at_import["Own"]
        assert isinstance(own, type)
        own(1, two=2)
    assert "torch_scatter" not in sys.modules


def test_our_reader_stands_in_for_open3d(tmp_path: Path) -> None:
    points = np.array([[1.0, 2.0, 3.0, 0.5], [4.0, 5.0, 6.0, 1.0]], dtype=np.float32)
    file = tmp_path / "cloud.pcd"
    file.write_bytes(WRITERS["opv2v"]().cloud_bytes(points))
    with applied([SHIMS["package.open3d"]]) as names:
        if not names:
            pytest.skip("open3d is installed")
        open3d = importlib.import_module("open3d")
        cloud = open3d.io.read_point_cloud(str(file))
        with pytest.raises(UserError, match="missing"):
            open3d.io.read_point_cloud(str(tmp_path / "missing.pcd"))
    left_handed = points[:, :3] * [1.0, -1.0, 1.0]  # as the hosts' files are
    np.testing.assert_allclose(np.asarray(cloud.points), left_handed)
    np.testing.assert_allclose(np.asarray(cloud.colors)[:, 0], points[:, 3], atol=1 / 255)


_boxes = arrays(np.float32, (4, 4), elements=st.floats(-20, 20, width=32))


@given(_boxes, _boxes)
def test_overlaps_are_those_of_the_formula(first: np.ndarray, second: np.ndarray) -> None:
    first[:, 2:], second[:, 2:] = first[:, :2] + 2.5, second[:, :2] + 1.5
    found = bbox_overlaps(first, second)
    for i, a in enumerate(first.astype(np.float64)):
        for j, b in enumerate(second.astype(np.float64)):
            width = min(a[2], b[2]) - max(a[0], b[0]) + 1
            height = min(a[3], b[3]) - max(a[1], b[1]) + 1
            shared = max(width, 0) * max(height, 0)
            whole = sum((c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b)) - shared
            assert found[i, j] == pytest.approx(shared / whole, abs=1e-5)
    assert found.dtype == np.float32


def test_boxes_half_a_metre_apart_overlap_by_the_plus_one_rule() -> None:
    """The value measured with the hosts' extension: a true IoU of 1/3 scores 0.429."""
    first = np.array([[0, 0, 1, 1]], dtype=np.float32)
    second = np.array([[0.5, 0, 1.5, 1]], dtype=np.float32)
    assert bbox_overlaps(first, second)[0, 0] == pytest.approx(3 / 5)
    apart = np.array([[0, 0, 2, 2], [2.5, 0, 4.5, 2]], dtype=np.float32)
    assert bbox_overlaps(apart[:1], apart[1:])[0, 0] == pytest.approx(1.5 / 16.5)


def test_the_cosine_follows_its_formula() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.4)
    schedule = CosineSchedule(
        optimizer, t_initial=100, lr_min=0.1, warmup_lr_init=0.2, warmup_t=10, t_in_epochs=False
    )

    def rate(update: int) -> float:
        schedule.step_update(update)
        return float(optimizer.param_groups[0]["lr"])

    assert rate(0) == pytest.approx(0.2)
    assert rate(5) == pytest.approx(0.3)
    assert rate(50) == pytest.approx(0.25)
    assert rate(100) == pytest.approx(0.1)
    assert rate(1000) == pytest.approx(0.1)


def test_pixel_unshuffle_takes_five_axes_of_any_layout() -> None:
    data = torch.randn(2, 1, 3, 4, 6)
    with applied([SHIMS["torch.pixel_unshuffle"]]):
        found = torch.nn.functional.pixel_unshuffle(data.transpose(3, 4), 2)
    expected = torch.stack(
        [torch.pixel_unshuffle(sample.transpose(2, 3).contiguous(), 2) for sample in data]
    )
    torch.testing.assert_close(found, expected)


# ------------------------------------------------------------------------------------------ safety


def test_a_frame_s_yaml_runs_nothing(fake_host: Path, tmp_path: Path) -> None:
    evil = tmp_path / "frame.yaml"
    evil.write_text(f"a: !!python/object/apply:os.mkdir ['{tmp_path}/made']\n")
    with enter(host_named("auto", fake_host), fake_host) as session:
        datasets = importlib.import_module("opencood.data_utils.datasets")
        for load_yaml in (datasets.load_yaml, session.modules.yaml_utils.load_yaml):
            with pytest.raises(UserError, match="nothing is executed"):
                load_yaml(str(evil))
    assert not (tmp_path / "made").exists()


def test_a_parser_that_is_no_parser_is_not_evaluated() -> None:
    utils = types.ModuleType("yaml_utils")
    vars(utils)["load_grid_params"] = lambda hypes: {**hypes, "seen": True}
    vars(utils)["os"] = os
    assert parsed({"yaml_parser": "load_grid_params"}, utils, "f")["seen"]
    for bad in ("__import__('os').getcwd()", "os", "load_x_params"):
        with pytest.raises(UserError, match="load_grid_params"):
            parsed({"yaml_parser": bad}, utils, "f")


def test_a_config_of_the_host_s_own_is_read_without_its_objects(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(
        "name: x\nlr: 1e-3\neps: 1e-10\n"
        "grid_size: !!python/object/apply:numpy._core.multiarray._reconstruct\n- 1\n"
    )
    assert read_hypes(file) == {"name": "x", "lr": 1e-3, "eps": 1e-10, "grid_size": None}
    load = safe_load_yaml(types.ModuleType("yaml_utils"))
    assert load(None, types.SimpleNamespace(model_dir=str(tmp_path)))["eps"] == 1e-10


def test_checkpoints_are_loaded_without_pickles(tmp_path: Path) -> None:
    class Foreign:
        pass

    torch.save({"a": torch.zeros(1)}, tmp_path / "good.pth")
    with applied([SHIMS["safety.checkpoints"]]):
        assert torch.load(tmp_path / "good.pth", weights_only=False)["a"] == 0
        torch.save({"a": os.getcwd}, tmp_path / "bad.pth")
        with pytest.raises(Exception, match=r"(?i)weights.only"):
            torch.load(tmp_path / "bad.pth", weights_only=False)


# ---------------------------------------------------------------------------------------- checkout


def test_the_checkout_is_found_by_key_variable_or_import(
    fake_host: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert locate() == fake_host
    with pytest.raises(UserError, match="no folder `opencood`"):
        locate(str(tmp_path))
    monkeypatch.delenv("OPENCOOD_ROOT")
    with pytest.raises(UserError, match="git clone"):
        locate()
    monkeypatch.syspath_prepend(str(FAKE_HOST))
    assert locate() == fake_host
    assert "opencood" not in sys.modules


def test_a_second_checkout_in_one_process_is_refused(fake_host: Path, tmp_path: Path) -> None:
    (tmp_path / "opencood").mkdir()
    with enter(host_named("auto", fake_host), fake_host):
        pass
    with (
        pytest.raises(UserError, match="already loaded"),
        enter(host_named("auto", fake_host), tmp_path),
    ):
        pass


def test_a_host_of_another_name_is_refused(fake_host: Path) -> None:
    with pytest.raises(UserError, match="this is OpenCOOD"):
        host_named("heal", fake_host)
    assert [HOSTS[name]().name for name in HOSTS] == list(HOSTS)


def test_missing_modules_and_exit_zero_become_sentences() -> None:
    host = host_named("auto", FAKE_HOST)
    with pytest.raises(UserError, match="pip install no_such_package"), said_plainly(host):
        importlib.import_module("no_such_package")
    with pytest.raises(UserError, match="gave up"), said_plainly(host):
        raise SystemExit(0)


def test_the_hash_sees_content_names_and_new_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    hashes = {tree_hash(tmp_path)}
    (tmp_path / "a").write_text("2")
    hashes.add(tree_hash(tmp_path))
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "a.pyc").write_text("")
    hashes.add(tree_hash(tmp_path))
    (tmp_path / "__pycache__" / "a.pyc").rename(tmp_path / "__pycache__" / "b.pyc")
    hashes.add(tree_hash(tmp_path))
    assert len(hashes) == 4
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "index").write_text("")
    assert tree_hash(tmp_path) in hashes


def test_disconet_s_weight_layer_stands_in_only_where_it_was_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "opencood" / "models" / "fuse_modules"
    folder.mkdir(parents=True)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not DISCO_FUSE.needed()  # a host without DiscoNet
    (folder / "fusion_in_one.py").write_text("", encoding="utf-8")
    assert DISCO_FUSE.needed()
    with DISCO_FUSE.applied():
        layer = importlib.import_module("opencood.models.fuse_modules.disco_fuse").PixelWeightLayer(
            16
        )
        assert layer(torch.rand(3, 32, 4, 5)).shape == (3, 1, 4, 5)
        widths = [m.weight.shape[:2] for m in layer.modules() if isinstance(m, torch.nn.Conv2d)]
        assert [tuple(shape) for shape in widths] == [(128, 32), (32, 128), (8, 32), (1, 8)]
    (folder / "disco_fuse.py").write_text("", encoding="utf-8")
    assert not DISCO_FUSE.needed()


def test_loader_processes_are_forked_around_a_host_alone() -> None:
    before = multiprocessing.get_start_method(allow_none=True)
    try:
        multiprocessing.set_start_method("spawn", force=True)
        assert FORKED_LOADERS.needed()
        with FORKED_LOADERS.applied():
            assert multiprocessing.get_start_method() == "fork"
            assert not FORKED_LOADERS.needed()
        assert multiprocessing.get_start_method() == "spawn"
    finally:
        multiprocessing.set_start_method(before, force=True)
