"""Pictures of coloured triangles: Embree finds what each ray meets, numpy shades and averages.

Shading depends on the surface alone, never on where the camera stands, so that a radiance field without view
direction can reproduce it exactly.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from mnif_nerf.errors import require

KEY_LIGHT = np.array([0.45, 0.35, 0.82]) / np.linalg.norm([0.45, 0.35, 0.82])
"""Direction towards the key light in the object's frame: from above, the front and a little from the left."""
AMBIENT, SKY, KEY = 0.60, 0.15, 0.30
"""Brightness of a face: AMBIENT + SKY * n_z + KEY * max(0, n . light); a roof gets 1, a right side 0.6."""
CREASE_DEGREES = 38.0
"""Neighbouring faces that meet at a smaller angle are shaded as one smooth surface."""
MAX_RESOLUTION = 4096
"""Pixels along a side that the data commands accept."""
RAYS_AT_ONCE = 500_000
MOST_LAYERS = 24
"""See-through faces behind one another that a ray is followed through."""
LAYER_STEP = 2e-5
"""How far behind a see-through face a ray goes on, where the bounding-box diagonal is 1."""


class Camera(Protocol):
    """What a picture needs of a camera: focal length, principal point and picture size in pixels."""

    @property
    def focal(self) -> float: ...
    @property
    def cx(self) -> float: ...
    @property
    def cy(self) -> float: ...
    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...


@dataclass
class Surface:
    """Triangles with colours, in one frame.

    Attributes:
        vertices: [V, 3] positions.
        faces: [F, 3] vertex indices.
        corner_colors: [F, 3, 3] straight colours in [0, 1] at the faces' corners (factors on a texture).
        uv: [F, 3, 2] texture coordinates, v upwards from the bottom; None where nothing is textured.
        texture: [F] index into `textures`, -1 for none; None where nothing is textured.
        textures: uint8 pictures [h, w, 3], or [h, w, 4] with straight alpha.
        wraps: how each of them goes on beyond its edges, along u and v: "repeat", "mirror" or "clamp"; empty: all
            repeat.
        corner_alpha: [F, 3] in [0, 1] at the faces' corners, a factor on the texture's alpha; None: opaque.
        cutoff: [F], alpha below which a face is not there; 0: it is blended; -1: alpha counts nothing. None: opaque.
    """

    vertices: np.ndarray
    faces: np.ndarray
    corner_colors: np.ndarray
    uv: np.ndarray | None = None
    texture: np.ndarray | None = None
    textures: list[np.ndarray] = field(default_factory=list)
    wraps: list[tuple[str, str]] = field(default_factory=list)
    corner_alpha: np.ndarray | None = None
    cutoff: np.ndarray | None = None

    def texels(self, faces: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """The textures' colour and alpha float32 [R, 4] in [0, 1] at barycentric `weights` [R, 3] of `faces` [R]; 1
        where there is no texture."""
        found = np.ones((len(faces), 4), np.float32)
        if self.texture is None or self.uv is None:
            return found
        uv = np.einsum("rkc,rk->rc", self.uv[faces], weights)
        for index, picture in enumerate(self.textures):
            chosen = self.texture[faces] == index
            if chosen.any():
                wrap = self.wraps[index] if self.wraps else ("repeat", "repeat")
                found[chosen, : picture.shape[2]] = sample_texture(picture, uv[chosen], wrap)
        return found

    def alpha(self, faces: np.ndarray, weights: np.ndarray, texels: np.ndarray | None = None) -> np.ndarray:
        """How much is there, float32 [R] in [0, 1], at such places; 0 or 1 where the faces are not blended."""
        if self.corner_alpha is None or self.cutoff is None:
            return np.ones(len(faces), np.float32)
        texels = self.texels(faces, weights) if texels is None else texels
        found = np.einsum("rk,rk->r", self.corner_alpha[faces], weights) * texels[:, 3]
        cutoff = self.cutoff[faces]
        return np.where(cutoff < 0, 1.0, np.where(cutoff > 0, found >= cutoff, found)).astype(np.float32)


def face_normals(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit normals [F, 3] (zero for degenerate faces) and twice the areas [F]."""
    corners = vertices[faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    lengths = np.linalg.norm(normals, axis=1)
    return normals / np.maximum(lengths, 1e-20)[:, None], lengths


def corner_normals(vertices: np.ndarray, faces: np.ndarray, crease_degrees: float = CREASE_DEGREES) -> np.ndarray:
    """Smooth unit normals per face corner [F, 3, 3].

    A corner averages the normals (weighted by area) of the faces that touch its position and meet its own
    face at less than the crease angle; so curved panels are smooth and edges stay sharp.
    """
    normals, areas = face_normals(vertices, faces)
    _, position = np.unique(np.round(vertices, 6), axis=0, return_inverse=True)
    position = position.reshape(-1)[faces].reshape(-1)
    order = np.argsort(position, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(position[order]) != 0])
    counts = np.diff(np.r_[starts, len(order)])
    smooth = np.repeat(normals, 3, axis=0)
    # The hub of a great fan would need a pair for each two of its faces; it stays flat, which nobody sees.
    groups = np.flatnonzero(counts <= 64)
    chunk_of = np.cumsum(counts[groups] ** 2) // 2_000_000
    for chunk in np.unique(chunk_of):
        chosen = groups[chunk_of == chunk]
        corner, other = _touching_pairs(order, starts[chosen], counts[chosen])
        near = np.einsum("ij,ij->i", normals[corner // 3], normals[other // 3]) > np.cos(np.radians(crease_degrees))
        weights = np.where(near, areas[other // 3], 0.0)
        touched, place = np.unique(corner, return_inverse=True)
        summed = np.stack([np.bincount(place, weights * normals[other // 3, k]) for k in range(3)], axis=1)
        length = np.linalg.norm(summed, axis=1)
        good = length > 1e-12
        smooth[touched[good]] = summed[good] / length[good, None]
    return smooth.reshape(-1, 3, 3)


def _touching_pairs(order: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All ordered pairs of corners at one position, where position g holds order[starts[g] : + counts[g]]."""
    per_corner = np.repeat(counts, counts)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    corner = np.repeat(order[np.repeat(starts, counts) + within], per_corner)
    offset = np.arange(per_corner.sum()) - np.repeat(np.cumsum(per_corner) - per_corner, per_corner)
    other = order[np.repeat(np.repeat(starts, counts), per_corner) + offset]
    return corner, other


def brightness(normals: np.ndarray) -> np.ndarray:
    """Shading factor [...] of unit normals [..., 3]: a hemisphere of sky and one fixed key light."""
    return AMBIENT + SKY * normals[..., 2] + KEY * np.maximum(normals @ KEY_LIGHT, 0.0)


class SurfaceRenderer:
    """Renders one surface from many cameras; building it costs milliseconds, a 64 x 64 view about one."""

    def __init__(self, surface: Surface) -> None:
        """Build the ray structure and the shading tables.

        Raises:
            MNIFError: Embree's Python package is not installed.
        """
        scenes, meshes = (require(f"embreex.{name}", "meshes") for name in ("rtcore_scene", "mesh_construction"))
        self.surface = surface
        self._vertices = np.ascontiguousarray(surface.vertices, dtype=np.float32)
        self._normals = face_normals(self._vertices.astype(np.float64), surface.faces)[0].astype(np.float32)
        self._colors = np.asarray(surface.corner_colors, np.float32)
        normals = corner_normals(np.asarray(surface.vertices, np.float64), surface.faces)
        # Two sides per face: an inside-out face is lit as if its normal pointed at the viewer.
        self._shade = np.stack([brightness(normals), brightness(-normals)]).astype(np.float32)
        self._used = self._vertices[np.unique(surface.faces)]
        self._scene = scenes.EmbreeScene(robust=True)
        self._mesh = meshes.TriangleMesh(
            self._scene, self._vertices, np.ascontiguousarray(surface.faces, dtype=np.int32)
        )

    def render(self, c2w: np.ndarray, camera: Camera, supersampling: int = 3) -> np.ndarray:
        """One picture with anti-aliased edges.

        Args:
            c2w: [4, 4] camera-to-world, OpenCV (x right, y down, z forward).
            camera: focal length and principal point in pixels, height and width.
            supersampling: rays per pixel along each axis.

        Returns:
            uint8 [H, W, 4], straight (not premultiplied) colour; empty pixels are white with alpha 0.
        """
        height, width = camera.height, camera.width
        picture = np.zeros((height, width, 4), np.uint8)
        picture[..., :3] = 255
        top, bottom, left, right = self._window(c2w, camera)
        if top >= bottom or left >= right:
            return picture
        # In bands of rows, so that memory stays bounded whatever the resolution.
        band = max(1, RAYS_AT_ONCE // ((right - left) * supersampling**2))
        for first in range(top, bottom, band):
            last = min(first + band, bottom)
            picture[first:last, left:right] = self._block((first, last, left, right), c2w, camera, supersampling)
        return picture

    def _block(
        self, window: tuple[int, int, int, int], c2w: np.ndarray, camera: Camera, supersampling: int
    ) -> np.ndarray:
        """Pixels uint8 [bottom - top, right - left, 4] of a window (top, bottom, left, right)."""
        top, bottom, left, right = window
        rows, columns = (bottom - top) * supersampling, (right - left) * supersampling
        v = top + (np.arange(rows) + 0.5) / supersampling
        u = left + (np.arange(columns) + 0.5) / supersampling
        plane = np.ones((rows, columns, 3))
        plane[..., 0] = ((u - camera.cx) / camera.focal)[None]
        plane[..., 1] = ((v - camera.cy) / camera.focal)[:, None]
        pose = np.asarray(c2w, np.float64)
        rgba = self.trace(pose[:3, 3], plane.reshape(-1, 3) @ pose[:3, :3].T)
        rgba[:, :3] *= rgba[:, 3:]
        blocks = rgba.reshape(bottom - top, supersampling, right - left, supersampling, 4).sum(axis=(1, 3))
        colour = blocks[..., :3] / np.maximum(blocks[..., 3:], 1e-9)
        colour[blocks[..., 3] == 0] = 1.0
        alpha = blocks[..., 3:] / supersampling**2
        return np.round(np.concatenate([colour, alpha], -1) * 255).astype(np.uint8)

    def trace(self, origin: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """Shaded colour and alpha, float32 [R, 4], of rays from `origin` [3] along `directions` [R, 3].

        Alpha is 1 where something opaque is met. Rays go on behind what is see-through, `MOST_LAYERS` times at most.
        Colours are straight, and 0 where nothing is met.
        """
        directions = np.ascontiguousarray(directions, dtype=np.float32)
        origins = np.array(np.broadcast_to(np.asarray(origin, np.float32), directions.shape))
        result = np.zeros((len(directions), 4), np.float32)
        left = np.arange(len(directions))
        step = LAYER_STEP / np.linalg.norm(directions, axis=1)
        for _ in range(1 if self.surface.cutoff is None else MOST_LAYERS):
            rays, colour, alpha, distance = self._first(origins[left], directions[left])
            left = left[rays]
            share = (1.0 - result[left, 3]) * alpha
            result[left, :3] += share[:, None] * colour
            result[left, 3] += share
            origins[left] += (distance + step[left])[:, None] * directions[left]
            left = left[result[left, 3] < 0.99]
            if not len(left):
                break
        if self.surface.cutoff is not None:
            result[:, :3] /= np.maximum(result[:, 3:], 1e-6)
        return result

    def _first(
        self, origins: np.ndarray, directions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """What rays meet first: which rays meet something, its shaded colours and alpha, and how many directions away
        it is."""
        hits = self._scene.run(np.ascontiguousarray(origins), np.ascontiguousarray(directions), output=True)
        rays = np.flatnonzero(hits["primID"] >= 0)
        face = hits["primID"][rays]
        u, v = hits["u"][rays], hits["v"][rays]
        weights = np.stack([1 - u - v, u, v], axis=1)
        behind = np.einsum("ij,ij->i", self._normals[face], directions[rays]) > 0
        shade = np.einsum("rk,rk->r", self._shade[behind.astype(np.int8), face], weights)
        texels = self.surface.texels(face, weights)
        albedo = np.einsum("rkc,rk->rc", self._colors[face], weights) * texels[:, :3]
        colour = np.clip(albedo * shade[:, None], 0.0, 1.0)
        return rays, colour, self.surface.alpha(face, weights, texels), hits["tfar"][rays]

    def _window(self, c2w: np.ndarray, camera: Camera) -> tuple[int, int, int, int]:
        """Pixel rows and columns (top, bottom, left, right) outside which nothing can be seen."""
        pose = np.asarray(c2w, np.float64)
        points = (self._used - pose[:3, 3]) @ pose[:3, :3]
        if not len(points) or points[:, 2].min() < 1e-3:
            return 0, camera.height, 0, camera.width
        across = points[:, 0] / points[:, 2] * camera.focal + camera.cx
        down = points[:, 1] / points[:, 2] * camera.focal + camera.cy
        limits = [
            np.clip([np.floor(values.min() - 0.01), np.ceil(values.max() + 0.01)], 0, size).astype(int)
            for values, size in ((down, camera.height), (across, camera.width))
        ]
        return int(limits[0][0]), int(limits[0][1]), int(limits[1][0]), int(limits[1][1])


def sample_texture(picture: np.ndarray, uv: np.ndarray, wrap: tuple[str, str] = ("repeat", "repeat")) -> np.ndarray:
    """Nearest texel [R, C] in [0, 1] of `picture` uint8 [h, w, C] at `uv` [R, 2] (v upwards); `wrap` as in `Surface`.

    Nearest, because colour maps of low-polygon models hold hard-edged swatches; supersampling smooths.
    """
    height, width = picture.shape[:2]
    column, row = _texel(uv[:, 0], width, wrap[0]), _texel(1.0 - uv[:, 1], height, wrap[1])
    return picture[row, column].astype(np.float32) / 255.0


def _texel(places: np.ndarray, count: int, wrap: str) -> np.ndarray:
    """Numbers of the texels at places [R], of `count` between 0 and 1."""
    places = np.nan_to_num(places, posinf=0.0, neginf=0.0)
    if wrap == "clamp":
        return np.clip(np.floor(np.clip(places, 0.0, 1.0) * count).astype(np.int64), 0, count - 1)
    if wrap == "mirror":
        places = 1.0 - np.abs(places % 2.0 - 1.0)
        return np.minimum(np.floor(places * count).astype(np.int64), count - 1)
    return np.floor((places % 1.0) * count).astype(np.int64) % count
