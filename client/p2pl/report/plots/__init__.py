"""Draws the pictures of a report: numbers and names in, a PNG file's bytes out."""

from p2pl.errors import InputError
from p2pl.extras import install

try:
    from p2pl.report.plots.canvas import BAD, BLUE, GREY, INK, ORANGE, PALETTE, Curve, Matrix
    from p2pl.report.plots.curves import draw_bands, draw_curves, draw_plan, draw_seeds
    from p2pl.report.plots.maps import EMPTY_CELL, draw_confusion, draw_trust, draw_trust_rounds
    from p2pl.report.plots.peers import draw_by_peer, draw_bytes, draw_comparison, draw_shards
except ModuleNotFoundError as missing:
    raise InputError(
        f"{missing.name} is not installed; it comes with: {install('report')}"
    ) from missing

__all__ = [
    "BAD",
    "BLUE",
    "EMPTY_CELL",
    "GREY",
    "INK",
    "ORANGE",
    "PALETTE",
    "Curve",
    "Matrix",
    "draw_bands",
    "draw_by_peer",
    "draw_bytes",
    "draw_comparison",
    "draw_confusion",
    "draw_curves",
    "draw_plan",
    "draw_seeds",
    "draw_shards",
    "draw_trust",
    "draw_trust_rounds",
]
