"""A chart: its data, its Vega-Lite for the page, the same drawn as PNG, SVG and PDF, and how charts look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import altair as alt
import vl_convert

Records: TypeAlias = list[dict[str, Any]]
Places: TypeAlias = Mapping[str, int]

VEGA_LITE = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
WIDTH, HEIGHT = 640, 340

# Okabe and Ito's colours for all kinds of colour vision, less yellow and black: they vanish on white or dark.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
_SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
_DASHES = ((1, 0), (6, 3), (2, 2), (8, 3, 2, 3))  # the second seven lines are dashed, the third dotted ...
_TEXT = {"labelFontSize": 12, "titleFontSize": 12}
_PRINTED = {"background": "white", "font": "sans-serif", "axis": _TEXT, "legend": _TEXT, "header": _TEXT}


@dataclass(frozen=True)
class Chart:
    """A chart: what it shows in words, its data, and its Vega-Lite specification."""

    name: str
    title: str
    description: str
    records: Records
    spec: dict[str, Any]

    def drawn(self) -> dict[str, bytes]:
        """Return the chart as `svg`, `png` and `pdf` on white, drawn without a browser."""
        svg = vl_convert.vegalite_to_svg(self.spec, vl_version=VEGA_LITE, config=_PRINTED)
        return {
            "svg": svg.encode(),
            "png": vl_convert.svg_to_png(svg, scale=2),
            "pdf": vl_convert.svg_to_pdf(svg),
        }


def looks(labels: Sequence[str], places: Places) -> dict[str, Any]:
    """Return the encodings that tell `labels` apart: by colour and shape, by dashes when colours run out."""

    def scale(looks: Sequence[Any], repeat: int = 1) -> alt.Scale:
        return alt.Scale(domain=labels, range=[looks[places[label] // repeat % len(looks)] for label in labels])

    opaque = alt.Legend(symbolOpacity=1, labelLimit=0)  # or it would be as pale as the bands, and names cut off
    return {
        "color": alt.Color("label:N", title=None, sort=None, scale=scale(COLOURS), legend=opaque),
        "shape": alt.Shape("label:N", title=None, sort=None, scale=scale(_SHAPES)),
        "strokeDash": alt.StrokeDash("label:N", title=None, sort=None, scale=scale(_DASHES, len(COLOURS))),
    }


def loose() -> alt.Scale:
    """Return the scale of an axis that need not begin at zero, with room around its points."""
    return alt.Scale(zero=False, nice=False, padding=20)


def as_spec(chart: Any, records: Records) -> dict[str, Any]:
    """Return the specification with its data, less the theme, which the page and the printed files decide."""
    spec: dict[str, Any] = chart.properties(data=alt.InlineData(records)).to_dict()
    aside = ("config", "$schema", "datasets")
    return {key: value for key, value in spec.items() if key not in aside} | {"data": {"values": records}}
