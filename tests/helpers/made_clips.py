"""What the windows of the data tests hold."""

from __future__ import annotations

from turbotrain_plugin.data.windows import ClipOptions

OPTIONS = ClipOptions(
    mode="vc",
    comm_range_m=50.0,
    max_agents=4,
    range_m=(-102.4, -40.0, -8.0, 102.4, 40.0, 4.0),
    hist_frames=3,
    future_steps=4,
    step_frames=5,
    classes=("Car", "PoliceCar"),
)
