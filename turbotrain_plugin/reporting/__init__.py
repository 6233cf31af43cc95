"""Tables and pictures from result files and plain arrays; loads no torch."""

from turbotrain_plugin.reporting.bev import SceneDrawing, draw_scene
from turbotrain_plugin.reporting.curves import draw_curves
from turbotrain_plugin.reporting.data_overview import OverviewDrawing, draw_overview
from turbotrain_plugin.reporting.film import draw_film
from turbotrain_plugin.reporting.reconstruction import ReconstructionDrawing, draw_reconstruction
from turbotrain_plugin.reporting.tables import (
    protocol_line,
    results_csv,
    results_markdown,
    results_table,
)

__all__ = [
    "OverviewDrawing",
    "ReconstructionDrawing",
    "SceneDrawing",
    "draw_curves",
    "draw_film",
    "draw_overview",
    "draw_reconstruction",
    "draw_scene",
    "protocol_line",
    "results_csv",
    "results_markdown",
    "results_table",
]
