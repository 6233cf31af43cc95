"""Which windows are samples and who is the ego, on scenes that exist only as an index."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from turbotrain_plugin.config import RunConfig
from turbotrain_plugin.data.formats.base import AgentFrames, SceneIndex
from turbotrain_plugin.data.windows import (
    ClipIndex,
    ClipOptions,
    Window,
    choose_ego,
    ego_order,
    members,
)
from turbotrain_plugin.structures import UserError

RANGE = (-40.0, -40.0, -5.0, 40.0, 40.0, 3.0)


def scene(
    clouds: dict[int, Sequence[int]],
    labels: dict[int, Sequence[int]] | None = None,
    name: str = "s",
) -> SceneIndex:
    agents = {
        agent_id: AgentFrames(tuple(frames), tuple((labels or {}).get(agent_id, frames)))
        for agent_id, frames in clouds.items()
    }
    return SceneIndex(name, "train", Path(name), Path(), agents)


def options(
    mode: str = "vc",
    *,
    hist_frames: int = 5,
    sample_stride: int = 1,
    history: bool = False,
    future: bool = False,
) -> ClipOptions:
    return ClipOptions(
        mode=mode,
        comm_range_m=50.0,
        max_agents=4,
        range_m=RANGE,
        hist_frames=hist_frames,
        future_steps=6,
        step_frames=5,
        sample_stride=sample_stride,
        require_history=history,
        require_future=future,
    )


def frames_of(index: ClipIndex) -> list[int]:
    return [window.frame for window in index]


def test_offsets_are_oldest_first() -> None:
    assert options().history_offsets() == (-20, -15, -10, -5, 0)
    assert options(hist_frames=1).history_offsets() == (0,)
    assert options().future_offsets() == (5, 10, 15, 20, 25, 30)


def test_options_come_from_the_hypes_file() -> None:
    found = ClipOptions.from_config(RunConfig(dataset_mode="ic"), with_labels=False, with_map=True)
    assert found.mode == "ic"
    assert found.comm_range_m == 50.0
    assert found.max_agents == 4
    assert found.range_m == (-102.4, -40.0, -5.0, 102.4, 40.0, 3.0)
    assert (found.with_labels, found.with_map) == (False, True)


def test_every_frame_of_the_ego_is_a_window() -> None:
    index = ClipIndex([scene({1: range(3)}), scene({2: range(7, 9)})], options())
    assert list(index) == [Window(0, 0), Window(0, 1), Window(0, 2), Window(1, 7), Window(1, 8)]
    assert len(index) == 5
    assert index.scene_numbers() == (0, 1)


@pytest.mark.parametrize(("hist_frames", "margin"), [(5, 50), (4, 45)])
@pytest.mark.parametrize("length", [51, 60, 104])
def test_complete_windows_of_an_n_frame_scene(hist_frames: int, margin: int, length: int) -> None:
    complete = options(hist_frames=hist_frames, history=True, future=True)
    index = ClipIndex([scene({1: range(length)})], complete)
    assert len(index) == length - margin
    assert index[0].frame == 5 * (hist_frames - 1)
    assert index[len(index) - 1].frame == length - 1 - 30


def test_scene_one_frame_too_short_is_skipped() -> None:
    with pytest.raises(UserError, match=r"No sample remains .* s: recording shorter"):
        ClipIndex([scene({1: range(50)})], options(history=True, future=True))


def test_labels_without_clouds_lengthen_the_recording() -> None:
    made = scene({1: range(10)}, labels={1: range(40)})
    assert frames_of(ClipIndex([made], options(future=True))) == list(range(10))


def test_stride_counts_from_the_first_cloud_of_any_agent() -> None:
    made = scene({1: range(5, 20), -1: range(3, 20)})
    assert frames_of(ClipIndex([made], options(sample_stride=5))) == [8, 13, 18]


def test_gaps_of_one_ego_are_windows_of_another() -> None:
    made = scene({1: (0, 1, 5), 2: (1, 2), -1: range(9)})
    assert frames_of(ClipIndex([made], options())) == [0, 1, 2, 5]
    assert frames_of(ClipIndex([made], options("ic"))) == list(range(9))


MIXED = scene({10: range(4), 2: range(4), -1: range(4), -10: range(4), -2: range(4)})


@pytest.mark.parametrize(
    ("mode", "egos", "team"),
    [
        ("vc", (2, 10), (-1, 2, -2, 10, -10)),
        ("ic", (-1, -2, -10), (-1, 2, -2, 10, -10)),
        ("v2v", (2, 10), (2, 10)),
        ("i2i", (-1, -2, -10), (-1, -2, -10)),
    ],
)
def test_modes(mode: str, egos: tuple[int, ...], team: tuple[int, ...]) -> None:
    assert ego_order(MIXED, mode) == egos
    assert members(MIXED, mode) == team
    assert choose_ego(MIXED, 0, mode, None) == egos[0]


def test_agent_without_a_cloud_is_no_ego() -> None:
    assert ego_order(scene({1: (), 2: (0,)}), "vc") == (2,)


def test_fixed_ego_falls_back_where_it_has_no_cloud() -> None:
    made = scene({1: (0, 2), 2: range(3), -1: range(3)})
    assert [choose_ego(made, frame, "vc", None) for frame in range(3)] == [1, 2, 1]
    with pytest.raises(ValueError, match=r"`frame` must exist for an agent that mode 'vc' allows"):
        choose_ego(made, 7, "vc", None)


def test_random_ego_is_fair_among_the_leading_kind_and_seeded() -> None:
    drawn = Counter(
        choose_ego(MIXED, 0, "ic", np.random.default_rng([7, seed])) for seed in range(600)
    )
    assert set(drawn) == {-1, -2, -10}
    assert min(drawn.values()) > 150
    first = [choose_ego(MIXED, frame, "vc", np.random.default_rng(3)) for frame in range(4)]
    assert len(set(first)) == 1


def test_random_ego_without_a_cloud_is_replaced() -> None:
    made = scene({1: (0,), 2: range(2)})
    for seed in range(10):
        assert choose_ego(made, 1, "vc", np.random.default_rng(seed)) == 2


def test_scenes_without_such_an_ego_are_named(caplog: pytest.LogCaptureFixture) -> None:
    cars = scene({1: range(3), 2: range(3)}, name="corridor_a")
    junction = scene({1: range(3), -1: range(3)}, name="junction_b")
    with caplog.at_level(logging.WARNING):
        index = ClipIndex([cars, junction], options("i2i"))
    assert list(index) == [Window(1, 0), Window(1, 1), Window(1, 2)]
    assert index.scene_numbers() == (1,)
    assert "Skipped 1 scene(s), no roadside unit for mode 'i2i': corridor_a" in caplog.text


def test_root_where_nothing_remains() -> None:
    with pytest.raises(UserError, match=r"'ic'.*corridor: no roadside unit.*another dataset_mode"):
        ClipIndex([scene({1: range(3)}, name="corridor")], options("ic"))
    with pytest.raises(UserError, match="found no scene"):
        ClipIndex([], options())
