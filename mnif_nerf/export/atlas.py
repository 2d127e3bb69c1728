"""UV atlases (xatlas): a surface cut into charts that lie in one picture without overlapping."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import trimesh

from mnif_nerf.errors import MNIFError, require
from mnif_nerf.machine import check_memory

_BYTES_PER_TEXEL = 80  # while it is baked: what is known of each, and the picture
LEAST_TEXTURE, GREATEST_TEXTURE = 16, 8192
_PADDING = 256  # one texel of room around a chart for so many along an edge, and at least `_LEAST_PADDING`
_LEAST_PADDING = 2
# From so many triangles on, charts have the area of at most so many: without a bound, xatlas takes five times as long
# on 20,000 triangles and makes more charts; with one, small meshes are cut into single triangles.
_BOUNDED_FROM, _CHART_FACES = 4000, 400
# xatlas takes the size as a wish: its atlases have 0.55 to 0.75 of it. So it is asked for more, and again where that
# was too much.
_ASKED = 1.3
_TRIES = 6


@dataclass(frozen=True)
class Atlas:
    """A mesh's triangles laid out in a picture.

    Attributes:
        vertices: int `[W]`, the mesh's vertex that each corner of the atlas is; vertices at cuts occur several times.
        faces: int `[F, 3]` into those; triangle f is the mesh's triangle f.
        uv: float64 `[W, 2]` in [0, 1], v downwards from the top of the picture.
        size: texels along an edge of the picture that it is padded for.
    """

    vertices: np.ndarray
    faces: np.ndarray
    uv: np.ndarray
    size: int


def check_texture(size: int) -> None:
    """Refuse a picture that is too small to hold an atlas, or too large for graphics cards or this machine's memory.

    Raises:
        MNIFError: not between `LEAST_TEXTURE` and `GREATEST_TEXTURE`, or too large for the memory.
    """
    if not LEAST_TEXTURE <= size <= GREATEST_TEXTURE:
        raise MNIFError(
            f"`texture` {size} is out of range; use {LEAST_TEXTURE} to {GREATEST_TEXTURE} texels (1024 is usual)."
        )
    check_memory(size, _BYTES_PER_TEXEL, dimensions=2, name="`texture`")


def unwrap(mesh: trimesh.Trimesh, size: int) -> Atlas:
    """Lay out a mesh's triangles in a square picture of `size` texels, with room between charts.

    Takes 0.2 s for 2,000 triangles and 2 s for 20,000.

    Raises:
        MNIFError: `size` out of range, or too small for so many charts.
    """
    check_texture(size)
    xatlas = require("xatlas", "meshes")
    charts, packing = xatlas.ChartOptions(), xatlas.PackOptions()
    if len(mesh.faces) >= _BOUNDED_FROM:
        charts.max_chart_area = _CHART_FACES / len(mesh.faces) * float(mesh.area)
    packing.padding = padding_of(size)
    packing.resolution = int(_ASKED * size)
    for _ in range(_TRIES):
        atlas = xatlas.Atlas()
        atlas.add_mesh(np.asarray(mesh.vertices, np.float32), np.asarray(mesh.faces, np.uint32))
        atlas.generate(charts, packing)
        edge = max(atlas.width, atlas.height)
        if edge <= size and atlas.atlas_count == 1:
            vertices, faces, uv = atlas[0]
            uv = np.asarray(uv, np.float64) * [atlas.width / edge, atlas.height / edge]
            return Atlas(vertices.astype(np.int64), faces.astype(np.int64), uv, size)
        packing.texels_per_unit = 0.9 * atlas.texels_per_unit * size / max(edge, size)
        packing.resolution = 0
    raise MNIFError(
        f"`texture` {size} is too small for the {atlas.chart_count} charts of {len(mesh.faces)} triangles; use "
        "a larger one, or fewer triangles."
    )


def padding_of(size: int) -> int:
    """Texels of room around charts in a picture of `size` texels."""
    return max(_LEAST_PADDING, size // _PADDING)
