"""Who of a scene carries a LiDAR."""

from __future__ import annotations

import numpy as np

from turbotrain_plugin.synthetic.agents import choose_vehicles
from turbotrain_plugin.synthetic.objects import SceneObjects


def test_two_vehicles_near_each_other_are_no_pair() -> None:
    xy = np.zeros((5, 3, 2))
    xy[:, 1, 0], xy[:, 2, 0] = 20.0, 45.0
    objects = SceneObjects(
        ids=np.arange(3),
        types=("Car",) * 3,
        half_sizes=np.ones((3, 3)),
        xy=xy,
        yaw=np.zeros((5, 3)),
        speed=np.zeros((5, 3)),
        present=np.ones((5, 3), np.bool_),
    )
    nowhere = np.zeros((0, 2))

    def chosen(least_m: float) -> set[int] | None:
        rng = np.random.default_rng(0)
        pair = choose_vehicles(objects, 3, nowhere, far=False, rng=rng, least_m=least_m)
        return None if pair is None else set(pair)

    assert chosen(40.0) == {0, 2}
    assert chosen(46.0) is None
    assert chosen(0.0) is not None
