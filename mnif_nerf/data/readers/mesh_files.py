"""Reading mesh files of many kinds into one coloured surface, upright, centred and of unit diagonal."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mnif_nerf.data.geometry.raytrace import Surface
from mnif_nerf.errors import MNIFError

MESH_SUFFIXES = (".glb", ".gltf", ".obj", ".ply", ".off", ".stl")
_Y_UP = (".glb", ".gltf", ".obj")
_AXES = {"x": 0, "y": 1, "z": 2}
UNCOLOURED = 0.65
"""Grey of meshes that carry no colour."""


def read_surface(path: Path | str, up: str = "auto", forward: str = "auto") -> Surface:
    """Read a mesh with its colours into our frame: z up, +x forward, centred, bounding-box diagonal 1.

    Scene-graph transforms are applied. Colours come from base colour textures, material colours, vertex or
    face colours; transparency is ignored.

    Args:
        path: .glb, .gltf, .obj, .ply, .off or .stl.
        up: "y", "z", "x", or "auto": y for .glb, .gltf and .obj, z for .ply, .off and .stl.
        forward: "+x", "-x", ..., "-z" in the file's axes, or "auto": +z where y is up (glTF's rule), else +x.

    Raises:
        MNIFError: unreadable, empty, without extent, not finite, or `up` and `forward` make no frame.
    """
    path = Path(path)
    turn = frame(path.suffix.lower(), up, forward)
    pieces = _pieces(path)
    if not pieces:
        raise MNIFError(f"{path}: an empty mesh (no triangles); remove the file or export it again.")
    surface = _join(pieces)
    used = surface.vertices[np.unique(surface.faces)]
    if not np.isfinite(used).all():
        raise MNIFError(f"{path}: a vertex is NaN or infinite; export the mesh again.")
    low, high = used.min(0), used.max(0)
    diagonal = float(np.linalg.norm(high - low))
    if diagonal < 1e-12:
        raise MNIFError(f"{path}: all vertices lie in one point; export the mesh again.")
    surface.vertices = ((surface.vertices - (low + high) / 2) / diagonal) @ turn.T
    # Turning the box turns its centre along, so the surface stays centred; the diagonal keeps its length.
    return surface


def frame(suffix: str, up: str, forward: str) -> np.ndarray:
    """Rotation [3, 3] from a file's axes to ours (x forward, y left, z up).

    Raises:
        MNIFError: an unknown axis, or both along the same one.
    """
    if up == "auto":
        up = "y" if suffix in _Y_UP else "z"
    if up not in _AXES:
        raise MNIFError(f"`up` {up}: unknown axis; choose auto, x, y or z.")
    if forward == "auto":
        forward = "+z" if up == "y" else "+x" if up == "z" else "+y"
    if forward[:1] not in ("+", "-") or forward[1:] not in _AXES:
        raise MNIFError(f"`forward` {forward}: unknown axis; choose auto, +x, -x, +y, -y, +z or -z.")
    if forward[1:] == up:
        raise MNIFError(f"`forward` {forward}: lies along the up axis {up}; choose another of the two.")
    z, x = np.zeros(3), np.zeros(3)
    z[_AXES[up]] = 1.0
    x[_AXES[forward[1:]]] = 1.0 if forward[0] == "+" else -1.0
    return np.stack([x, np.cross(z, x), z])


@contextlib.contextmanager
def quiet_trimesh() -> Iterator[None]:
    """Keep trimesh's log still within the block.

    It writes a traceback for each thing that it works around; what matters is raised, or seen in the result.
    """
    log = logging.getLogger("trimesh")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


def _pieces(path: Path) -> list[Surface]:
    import trimesh

    try:
        with quiet_trimesh():
            scene = trimesh.load(str(path), force="scene", process=False)
        found = []
        for node in scene.graph.nodes_geometry:
            transform, name = scene.graph[node]
            mesh = scene.geometry[name]
            if isinstance(mesh, trimesh.Trimesh) and len(mesh.faces):
                piece = _piece(mesh, path.suffix.lower() in (".glb", ".gltf"))
                with np.errstate(invalid="ignore"):  # infinite vertices are told later
                    piece.vertices = piece.vertices @ transform[:3, :3].T + transform[:3, 3]
                found.append(piece)
        return found
    except MemoryError:
        raise
    except Exception as error:  # every loader raises what it likes
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise MNIFError(f"{path}: cannot be read as a mesh ({reason[:120]}); remove it or export it again.") from None


def _piece(mesh: Any, linear: bool) -> Surface:
    """One trimesh geometry with its colours; `linear`: factors and vertex colours are linear light, as in glTF."""
    faces = np.asarray(mesh.faces, np.int64)
    vertices = np.asarray(mesh.vertices, np.float64)
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise ValueError("a face names a vertex that is not there")
    visual = mesh.visual
    kind = getattr(visual, "kind", None)
    if kind == "vertex":
        colors = np.asarray(visual.vertex_colors)[faces, :3] / 255.0
        return Surface(vertices, faces, _encode(colors) if linear else colors)
    if kind == "face":
        colors = np.repeat(np.asarray(visual.face_colors)[:, None, :3] / 255.0, 3, axis=1)
        return Surface(vertices, faces, colors)
    colors = np.full((len(faces), 3, 3), UNCOLOURED)
    if kind != "texture":
        return Surface(vertices, faces, colors)
    material = visual.material
    materials = getattr(material, "materials", None) or [material]
    choice = getattr(visual, "face_materials", None)
    choice = np.zeros(len(faces), np.int64) if choice is None else np.asarray(choice, np.int64)
    uv = None if visual.uv is None or len(visual.uv) != len(vertices) else np.asarray(visual.uv, np.float64)[faces]
    texture = np.full(len(faces), -1)
    textures: list[np.ndarray] = []
    for index, single in enumerate(materials):
        chosen = choice == index
        picture, factor = _material(single, linear)
        if picture is not None and uv is not None:
            texture[chosen] = len(textures)
            textures.append(picture)
            colors[chosen] = 1.0 if factor is None else factor
        elif factor is not None:
            colors[chosen] = factor
    attribute = (getattr(visual, "vertex_attributes", None) or {}).get("color")
    if attribute is not None and len(attribute) == len(vertices):
        tint = np.asarray(attribute)[faces, :3]
        tint = tint / 255.0 if np.issubdtype(tint.dtype, np.integer) else tint
        tint = _encode(tint) if linear else tint
        # Grey stands for "no colour"; vertex colours then are the colour, not a factor on grey.
        colors = np.where((colors == UNCOLOURED) & (texture < 0)[:, None, None], 1.0, colors) * tint
    return Surface(vertices, faces, colors, uv if textures else None, texture if textures else None, textures)


def _material(material: Any, linear: bool) -> tuple[np.ndarray | None, np.ndarray | None]:
    """A material's picture uint8 [h, w, 3] and colour factor [3], each None where it has none."""
    picture = getattr(material, "baseColorTexture", None)
    factor = getattr(material, "baseColorFactor", None)
    if picture is None and factor is None:
        picture = getattr(material, "image", None)
        # With a picture, .mtl files often hold a black or grey diffuse colour that nobody multiplies.
        factor = getattr(material, "diffuse", None) if picture is None else None
    if factor is not None:
        values = np.asarray(factor)[:3]
        values = values / 255.0 if np.issubdtype(values.dtype, np.integer) else values.astype(np.float64)
        factor = _encode(values) if linear else values
    if picture is not None:
        picture = np.asarray(picture.convert("RGB"))
    return picture, factor


def _encode(linear: np.ndarray) -> np.ndarray:
    """Linear light to sRGB: glTF's colour factors are linear, its pictures and ours are not."""
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 1e-9) ** (1 / 2.4) - 0.055)


def _join(pieces: list[Surface]) -> Surface:
    offsets = np.cumsum([0, *(len(piece.vertices) for piece in pieces[:-1])])
    textures: list[np.ndarray] = []
    uvs, texture = [], []
    for piece in pieces:
        count = len(piece.faces)
        if piece.texture is None or piece.uv is None:
            uvs.append(np.zeros((count, 3, 2)))
            texture.append(np.full(count, -1))
        else:
            uvs.append(piece.uv)
            texture.append(np.where(piece.texture >= 0, piece.texture + len(textures), -1))
            textures += piece.textures
    return Surface(
        vertices=np.concatenate([piece.vertices for piece in pieces]),
        faces=np.concatenate([piece.faces + offset for piece, offset in zip(pieces, offsets)]),
        corner_colors=np.concatenate([piece.corner_colors for piece in pieces]),
        uv=np.concatenate(uvs) if textures else None,
        texture=np.concatenate(texture) if textures else None,
        textures=textures,
    )
