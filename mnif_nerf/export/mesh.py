"""A field's surface as a coloured, closed triangle mesh (marching cubes on log density).

The mesh of `field_to_mesh` is in the library's own axes (z up, +x forward, +y left). `to_export_axes` turns
it to the axes of glTF (y up, +z forward); `mnif_nerf.export.mesh_files.write_mesh` writes each format in its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import trimesh
from torch import Tensor

from mnif_nerf.errors import MNIFError
from mnif_nerf.export.decimate import check_faces, decimate
from mnif_nerf.export.density import (
    CHUNK,
    check_resolution,
    density_grid,
    field_device,
    level_of,
)
from mnif_nerf.export.mesh_files import ExportMesh, to_export_axes, write_mesh
from mnif_nerf.fields.solid import surface_thickness
from mnif_nerf.rendering.occupancy import RadianceField

__all__ = [
    "MeshOptions",
    "density_grid",
    "field_to_mesh",
    "mesh_report",
    "surface_colors",
    "to_export_axes",
    "write_mesh",
]

# Grid, its logarithm, the padded copy marching cubes reads (as double), and a margin for the triangles.
_MOST_SMOOTHING = 1000  # steps
_BYTES_PER_CELL = 24
# Log densities are cut here: farther from the surface than a factor of 400 they only shift vertices towards
# a node.
_CLIP = 6.0
# Values this close to the level would put vertices of different edges on one node, which breaks
# watertightness.
_NUDGE = 1e-2


class NoSurfaceError(MNIFError):
    """Nothing in a field reaches the level; `highest` is the highest density there is."""

    def __init__(self, level: float, highest: float) -> None:
        super().__init__(
            f"nothing in the field reaches the density level {level:.3g} (its maximum is {highest:.3g}); "
            "lower it with `level`, or train for longer."
        )
        self.highest = highest


@dataclass(frozen=True)
class MeshOptions:
    """How a surface becomes a mesh.

    Attributes:
        level: density of the surface, 1/world unit; `level_of` when None. Lower is fatter.
        keep: "largest" keeps the shell that encloses the largest volume; "all" keeps everything.
        smooth: Taubin smoothing steps (shrink-free); 0 for none, 10 is visible.
        max_faces: decimate to at most this many triangles (quadric error), or None.
        colors: whether vertices get the field's colours.
    """

    level: float | None = None
    keep: Literal["largest", "all"] = "largest"
    smooth: int = 0
    max_faces: int | None = None
    colors: bool = True


def field_to_mesh(
    field: RadianceField,
    resolution: int = 128,
    cells: Tensor | None = None,
    options: MeshOptions | None = None,
    half_extent: float = 0.5,
    chunk: int = CHUNK,
) -> ExportMesh:
    """The surface of a field as a closed mesh with outward triangles, in the library's own axes.

    Marching cubes runs on log density, which is close to linear across a surface of a softplus field, so
    vertices lie where a linear interpolation of density itself would be biased outward. One empty layer
    around the grid closes objects that reach the box.

    Args:
        field: with `density` and `radiance` (see `CompactField`).
        resolution: cells along an edge of the box; 256 takes about 0.4 GB.
        cells: bool `[C, C, C]` where the object can be (the union of the training hulls), or None.
        options: level, simplification and colours; the defaults when None.
        half_extent: half the edge of the box, in world units.
        chunk: points per field query.

    Returns:
        the mesh; `metadata` holds "axes", "level", "components_found" (shells before `keep`) and "volume_lost" (the
        share of the volume that `keep` threw away).

    Raises:
        MNIFError: an option out of range, a resolution that does not fit in memory, nothing reaches the
            level, or a damaged field.
    """
    options = options or MeshOptions()
    check_request(resolution, options)
    level = level_of(field, half_extent) if options.level is None else options.level
    values = density_grid(field, resolution, half_extent, cells, chunk, level).numpy()
    vertices, faces = _marching_cubes(values, level, half_extent)
    vertices, faces, _, facts = largest_shell(vertices, faces, options.keep)
    mesh = ExportMesh(vertices, faces, process=False)
    mesh.metadata.update({"axes": "z-up", "level": float(level), **facts})
    if options.smooth:
        trimesh.smoothing.filter_taubin(mesh, lamb=0.5, nu=0.52, iterations=options.smooth)
    if options.max_faces is not None and len(mesh.faces) > options.max_faces:
        mesh = decimate(mesh, options.max_faces)
    if options.colors:
        rgb = surface_colors(field, mesh.vertices, mesh.vertex_normals, half_extent, chunk)
        mesh.visual = trimesh.visual.ColorVisuals(mesh, vertex_colors=to_rgba8(rgb))
    return mesh


@torch.no_grad()
def surface_colors(
    field: RadianceField,
    vertices: np.ndarray,
    normals: np.ndarray,
    half_extent: float = 0.5,
    chunk: int = CHUNK,
    samples: int = 4,
) -> np.ndarray:
    """Colours a camera would see looking straight down at a surface.

    A field's colour is only trained where light is absorbed, which is a little under the level set; exactly
    on it the background's white leaks in. So colours are composited along the inward normal, over
    `surface_thickness`.

    Args:
        field: with `radiance`.
        vertices: `[N, 3]`, world units.
        normals: `[N, 3]`, outward.
        half_extent: half the edge of the box.
        chunk: points per field query.
        samples: S, depths per vertex.

    Returns:
        float32 `[N, 3]` in [0, 1].
    """
    step = surface_thickness(half_extent) / samples
    depths = (torch.arange(samples) + 0.5) * step
    device = field_device(field)
    result = np.empty((len(vertices), 3), dtype=np.float32)
    for first in range(0, len(vertices), max(1, chunk // samples)):
        part = slice(first, first + max(1, chunk // samples))
        origin = torch.from_numpy(np.array(vertices[part], dtype=np.float32))
        inward = -torch.from_numpy(np.array(normals[part], dtype=np.float32))
        points = origin[:, None] + depths[None, :, None] * inward[:, None]
        rgb, density = field.radiance(points.reshape(-1, 3).to(device))
        rgb, density = rgb.view(len(origin), samples, 3), density.view(len(origin), samples)
        optical = density * step
        before = optical.cumsum(dim=1) - optical
        # A floor on the weights gives an exactly transparent vertex its plain mean colour instead of 0 / 0.
        weights = torch.exp(-before) * -torch.expm1(-optical) + 1e-6
        mean = (weights[..., None] * rgb).sum(1) / weights.sum(1, keepdim=True)
        result[part] = mean.clamp(0.0, 1.0).float().cpu().numpy()
    return result


def mesh_report(mesh: trimesh.Trimesh) -> dict[str, Any]:
    """Facts about a mesh.

    Returns:
        triangles, vertices, watertight, volume (world units cubed, only where watertight, else None),
        components (closed shells in this mesh), components_found (before the largest was kept), volume_lost (share of
        the volume thrown away with the others), extent (of the bounding box, along each axis), level (None if not
        known).
    """
    components = len(_components(np.asarray(mesh.vertices), np.asarray(mesh.faces))[1])
    watertight = bool(mesh.is_watertight)
    return {
        "triangles": len(mesh.faces),
        "vertices": len(mesh.vertices),
        "watertight": watertight,
        "volume": float(mesh.volume) if watertight else None,
        "components": components,
        "components_found": int(mesh.metadata.get("components_found", components)),
        "volume_lost": round(float(mesh.metadata.get("volume_lost", 0.0)), 4),
        "extent": np.round(mesh.extents, 6).tolist(),
        "level": mesh.metadata.get("level"),
    }


def check_request(resolution: int, options: MeshOptions) -> None:
    """Refuse what `field_to_mesh` would refuse, before any work is done.

    Raises:
        MNIFError: an option out of range, or a resolution that does not fit in memory.
    """
    check_resolution(resolution, _BYTES_PER_CELL)
    check_level(options.level)
    keep, smooth, max_faces = options.keep, options.smooth, options.max_faces
    if keep not in ("largest", "all"):
        raise MNIFError(f"`keep` {keep!r} is not known; use largest or all.")
    if smooth < 0:
        raise MNIFError(f"`smooth` {smooth} is negative; use 0 for none, or about 10.")
    if smooth > _MOST_SMOOTHING:
        raise MNIFError(f"`smooth` {smooth:,} leaves nothing of a shape; use at most {_MOST_SMOOTHING:,}, or about 10.")
    if max_faces is not None:
        check_faces("max_faces", max_faces)


def check_level(level: float | None) -> None:
    """Refuse a level that no density has.

    Raises:
        MNIFError: not a positive number.
    """
    if level is not None and not (np.isfinite(level) and level > 0):
        raise MNIFError(f"`level` {level} is not a density; use a positive number (the default is 22).")


def _marching_cubes(values: np.ndarray, level: float, half_extent: float) -> tuple[np.ndarray, np.ndarray]:
    """Vertices `[V, 3]` (world units) and outward faces `[F, 3]` of a level set of `[G, G, G]`."""
    import mcubes

    highest = float(values.max())
    if highest <= level:
        raise NoSurfaceError(level, highest)
    resolution = values.shape[0]
    padded = np.full((resolution + 2,) * 3, -_CLIP, dtype=np.float32)
    inner = padded[1:-1, 1:-1, 1:-1]
    np.log(np.maximum(values, level * np.exp(-_CLIP), dtype=np.float32), out=inner)
    inner -= np.log(level)
    np.clip(inner, -_CLIP, _CLIP, out=inner)
    near = np.abs(inner) < _NUDGE
    inner[near] = np.copysign(_NUDGE, inner[near])
    vertices, faces = mcubes.marching_cubes(padded, 0.0)
    return (vertices - 0.5) * (2 * half_extent / resolution) - half_extent, faces.astype(np.int64)


def _components(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The shell of each vertex `[V]`, and the signed volume of each shell `[C]` (a cavity's is negative)."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    start, end = faces.flatten(), faces[:, [1, 2, 0]].flatten()
    graph = coo_matrix((np.ones(len(start), dtype=np.int8), (start, end)), shape=(len(vertices),) * 2)
    _, labels = connected_components(graph, directed=False)
    corners = vertices[faces]
    volumes = np.einsum("fi,fi->f", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])) / 6
    # Vertices no triangle uses would count as shells of their own: number only the labels that faces carry.
    used, face_labels = np.unique(labels[faces[:, 0]], return_inverse=True)
    renumber = np.full(labels.max() + 1, -1)
    renumber[used] = np.arange(len(used))
    return renumber[labels], np.bincount(face_labels, weights=volumes)


def largest_shell(
    vertices: np.ndarray, faces: np.ndarray, keep: Literal["largest", "all"] = "largest"
) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
    """The shell that encloses most, or all of them.

    Returns:
        its vertices `[V, 3]` and faces `[F, 3]`, which vertices are its, int `[V]`, and for the mesh's metadata
        "components_found" (shells there are) and "volume_lost" (share of the enclosed volume that is not kept; hollows
        do not count).
    """
    labels, volumes = _components(vertices, faces)
    chosen, lost = np.ones(len(faces), dtype=bool), 0.0
    if keep == "largest" and len(volumes) > 1:
        chosen = labels[faces[:, 0]] == int(np.argmax(np.abs(volumes)))
        solid = np.maximum(volumes, 0.0)
        lost = float(1.0 - solid.max() / solid.sum()) if solid.sum() > 0 else 0.0
    used, index = np.unique(faces[chosen], return_inverse=True)
    return vertices[used], index.reshape(-1, 3), used, {"components_found": len(volumes), "volume_lost": lost}


def to_rgba8(rgb: np.ndarray) -> np.ndarray:
    """Colours `[N, 3]` in [0, 1] as opaque uint8 `[N, 4]`."""
    opaque = np.full((len(rgb), 1), 255, dtype=np.uint8)
    return np.concatenate([np.rint(rgb.clip(0, 1) * 255).astype(np.uint8), opaque], axis=1)
