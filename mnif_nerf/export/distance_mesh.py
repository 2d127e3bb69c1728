"""The surface of a distance field as a closed, coloured triangle mesh that keeps sharp edges.

Only cells near the surface are evaluated. Marching cubes finds which edges of the grid the surface crosses, false
position where, the field's slope says how the surface lies there, and dual contouring makes the mesh of it
(`mnif_nerf.export.dual_mesh`): at equal triangles it is several times nearer to a box with edges, and has no slivers.
Corners that lie on no edge are put on the zero of the field by Newton steps.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
import trimesh
from torch import Tensor

from mnif_nerf.errors import MNIFError
from mnif_nerf.export.dual_mesh import Crossings, dual_mesh
from mnif_nerf.export.mesh import (
    ExportMesh,
    MeshOptions,
    NoSurfaceError,
    check_request,
    decimate,
    largest_shell,
    to_rgba8,
)
from mnif_nerf.fields.distance import TRUNCATION, DistanceField
from mnif_nerf.rendering.near_cells import cell_points, distances_at, field_device, near_cells
from mnif_nerf.rendering.occupancy import resize_cells
from mnif_nerf.rendering.surface import grow_cells, refine_crossing

_CHUNK = 1 << 13  # points differentiated together
# Values this close to zero, in cells, would put corners of different edges on one node, and the mesh were not closed.
_NUDGE = 1e-3
_NEWTON_STEPS = 2
_FLATTEST = 0.05  # least squared slope that a step is divided by
_ASKED = 32  # cells along an edge of the box that are asked for the least distance, where nothing is inside


class NoInsideError(NoSurfaceError):
    """No point of a field is nearer than the level; `highest` is minus the least distance there is."""

    def __init__(self, level: float, least: float) -> None:
        super().__init__(-level, -least)
        self.args = (
            f"nothing is inside at the distance {level:.3g} (the least distance in the field is {least:.3g}); raise it "
            "with `level`, or train for longer.",
        )


@dataclass(frozen=True)
class _Place:
    """Where the dense part of the grid lies: its first cell `[3]`, a cell's edge, and the level (world units)."""

    low: np.ndarray
    edge: float
    half_extent: float
    level: float

    def world(self, cells: np.ndarray) -> np.ndarray:
        """World units of numbers of cells `[N, 3]`."""
        return (cells - 0.5 + self.low) * self.edge - self.half_extent

    def cells(self, points: np.ndarray) -> np.ndarray:
        """The other way round."""
        return (points + self.half_extent) / self.edge + 0.5 - self.low


class _Offset:
    """What `refine_crossing` asks of a distance field with another level."""

    def __init__(self, field: DistanceField, level: float) -> None:
        self.field, self.level = field, level

    @torch.no_grad()
    def value(self, points: Tensor) -> Tensor:
        """Positive inside, `[N]` at `[N, 3]`."""
        return self.level - self.field.distance(points)


def distance_mesh(
    field: DistanceField,
    resolution: int = 128,
    cells: Tensor | None = None,
    options: MeshOptions | None = None,
    sharp: bool = True,
) -> ExportMesh:
    """The surface of a distance field as a closed mesh with outward triangles, in the library's own axes.

    Args:
        field: the field.
        resolution: cells along an edge of the scene box; only those near the surface are evaluated.
        cells: bool `[C, C, C]` where the object can be, or None.
        options: simplification and colours; the defaults when None. Its level is a distance (world units, 0 when
            None): the surface is drawn that far outside the object, inside where it is negative.
        sharp: whether edges are sharpened.

    Returns:
        the mesh; `metadata` holds "axes", "level", "components_found" (shells before `keep`) and "volume_lost" (the
        share of the volume that `keep` threw away).

    Raises:
        MNIFError: a resolution that does not fit in memory, nothing inside, or a damaged field.
    """
    options = options or MeshOptions()
    check_request(resolution, dataclasses.replace(options, level=None))
    level = 0.0 if options.level is None else options.level
    vertices, faces, outward, place = _marching_cubes(field, resolution, level, cells)
    vertices, faces, kept, facts = largest_shell(vertices, faces, options.keep)
    points = _on_edges(field, vertices, outward[kept], place)
    if sharp:
        slope = _slopes(field, points)[1]
        normals = slope / np.maximum(np.linalg.norm(slope, axis=1, keepdims=True), 1e-9)
        corners, faces, edges = dual_mesh(Crossings(vertices, faces, outward[kept], place.cells(points), normals))
        points = place.world(corners)
        points[~edges] = _onto_surface(field, points[~edges], place)
    vertices = points
    mesh = ExportMesh(vertices, faces, process=False)
    mesh.metadata.update({"axes": "z-up", "level": float(level), **facts})
    if options.smooth:
        trimesh.smoothing.filter_taubin(mesh, lamb=0.5, nu=0.52, iterations=options.smooth)
    if options.max_faces is not None and len(mesh.faces) > options.max_faces:
        mesh = decimate(mesh, options.max_faces)
    if options.colors:
        rgb = nearest_colors(field, mesh.vertices)
        mesh.visual = trimesh.visual.ColorVisuals(mesh, vertex_colors=to_rgba8(rgb))
    return mesh


def nearest_colors(field: DistanceField, points: np.ndarray) -> np.ndarray:
    """Colours (sRGB, float32 `[N, 3]` in [0, 1]) on the surface, where it is nearest to points `[N, 3]` (world units).

    Points farther off than the field knows distances get the colour that it has in that direction.
    """
    parts = []
    for part in _tensor(field, points).split(_CHUNK):
        distance, slope = field.distance_and_slope(part)
        step = (distance.clamp(-TRUNCATION, TRUNCATION) / slope.square().sum(1).clamp(min=_FLATTEST)).unsqueeze(1)
        with torch.no_grad():
            parts.append(field.color(part - step * slope).float().cpu().numpy())
    return np.concatenate(parts) if parts else np.zeros((0, 3), np.float32)


def _marching_cubes(
    field: DistanceField, resolution: int, level: float, bounds: Tensor | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, _Place]:
    """Vertices `[V, 3]` (cells) and outward faces `[F, 3]`, and which way the solid ends along each vertex's edge `[V]`
    (1 or -1). The grid's nodes are the centres of its cells."""
    import mcubes

    near, inside = near_cells(field, resolution, level, bounds)
    near = grow_cells(near)  # both ends of every edge that the surface crosses
    if bounds is not None:
        near &= resize_cells(bounds.to(near.device), resolution)
    index = near.flatten().nonzero().flatten()
    distance = distances_at(field, cell_points(index, resolution, field.half_extent)) - level
    if not bool(torch.isfinite(distance).all()):
        raise MNIFError("the field gives NaN or infinite distances; its weights are damaged, so train it again.")
    inside.view(-1)[index] = distance < 0
    if not bool(inside.any()):
        everywhere = cell_points(torch.arange(_ASKED**3, device=near.device), _ASKED, field.half_extent)
        raise NoInsideError(level, float(distances_at(field, everywhere).min()))
    edge = 2 * field.half_extent / resolution
    solid = torch.where(inside, TRUNCATION, -TRUNCATION)
    floor = _NUDGE * edge
    solid.view(-1)[index] = torch.where(distance < 0, (-distance).clamp(min=floor), (-distance).clamp(max=-floor))
    low, high = _box(inside)
    part = solid[low[0] : high[0], low[1] : high[1], low[2] : high[2]].cpu().numpy()
    padded = np.pad(part, 1, constant_values=-TRUNCATION)  # an empty layer closes what reaches the box
    vertices, faces = mcubes.marching_cubes(padded, 0.0)
    i, j, k = np.floor(vertices).astype(np.int64).T
    place = _Place(np.array(low), edge, field.half_extent, level)
    return vertices, faces.astype(np.int64), np.where(padded[i, j, k] > 0, 1, -1), place


def _box(inside: Tensor) -> tuple[list[int], list[int]]:
    """Lowest and highest index of the set cells and of one layer around them."""
    low, high = [], []
    for axis in range(3):
        others = [other for other in range(3) if other != axis]
        found = inside.any(dim=others[1]).any(dim=others[0]).nonzero().flatten()
        low.append(max(int(found[0]) - 1, 0))
        high.append(min(int(found[-1]) + 2, len(inside)))
    return low, high


def _tensor(field: DistanceField, values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(values, dtype=np.float32)).to(field_device(field))


def _slopes(field: DistanceField, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distances `[N]` and their growth `[N, 3]` at `[N, 3]` points."""
    at = _tensor(field, points)
    pairs = [field.distance_and_slope(part) for part in at.split(_CHUNK)]
    distance, slope = (torch.cat(part).double().cpu().numpy() for part in zip(*pairs))
    return distance, slope


def _on_edges(field: DistanceField, vertices: np.ndarray, outward: np.ndarray, place: _Place) -> np.ndarray:
    """Where the surface crosses the grid's edges that hold vertices `[V, 3]` (cells): world units `[V, 3]`."""
    along = np.abs(vertices - np.rint(vertices)).argmax(axis=1)
    start = np.floor(vertices)
    direction = np.zeros_like(vertices)
    rows = np.arange(len(vertices))
    direction[rows, along] = -outward
    start[rows, along] += outward > 0  # its outer end
    origins, directions = (_tensor(field, values) for values in (place.world(start), direction))
    zero = torch.zeros(len(origins), device=origins.device)
    depth, _ = refine_crossing(_Offset(field, place.level), origins, directions, zero, zero + place.edge)
    return (origins + depth.unsqueeze(-1) * directions).double().cpu().numpy()


def _onto_surface(field: DistanceField, points: np.ndarray, place: _Place) -> np.ndarray:
    """Points `[N, 3]` moved to the level by Newton steps, by no more than half a cell in all."""
    start = points
    for _ in range(_NEWTON_STEPS):
        distance, slope = _slopes(field, points)
        step = -((distance - place.level) / np.maximum((slope**2).sum(1), _FLATTEST))[:, None] * slope
        points = start + _shortened(points + step - start, 0.5 * place.edge)
    return points


def _shortened(steps: np.ndarray, longest: float) -> np.ndarray:
    """Steps `[N, 3]`, none longer than `longest`."""
    lengths = np.linalg.norm(steps, axis=1, keepdims=True)
    return steps * np.minimum(1.0, longest / np.maximum(lengths, 1e-12))
