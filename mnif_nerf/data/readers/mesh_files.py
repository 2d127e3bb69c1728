"""Reading mesh files of many kinds into one coloured surface, upright, centred and of unit diagonal."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mnif_nerf.data.geometry.raytrace import Surface, face_normals
from mnif_nerf.data.readers.gltf import read_gltf
from mnif_nerf.data.readers.mesh_notes import (
    COLOR_NOTES,
    LACKS_PICTURE,
    LARGE_SHEET,
    LEFT_OUT,
    NO_COLOR,
    NOT_DRAWN,
    MeshNote,
)
from mnif_nerf.data.readers.mesh_pieces import (
    UNCOLOURED,
    chosen_faces,
    flat_and_large,
    is_shadow,
    join,
    seen_faces,
)
from mnif_nerf.data.readers.mesh_surroundings import Surroundings
from mnif_nerf.data.readers.obj import read_obj
from mnif_nerf.data.readers.off import read_off
from mnif_nerf.data.readers.stored_colors import ply_colors, stl_colors
from mnif_nerf.errors import MNIFError

__all__ = ["MESH_SUFFIXES", "UNCOLOURED", "MeshContent", "frame", "quiet_trimesh", "read_mesh", "read_surface"]

MESH_SUFFIXES = (".glb", ".gltf", ".obj", ".ply", ".off", ".stl")
_Y_UP = (".glb", ".gltf", ".obj")
_AXES = {"x": 0, "y": 1, "z": 2}


@dataclass
class MeshContent:
    """What a mesh file holds.

    Attributes:
        surface: in our frame, see `read_surface`.
        low, high: the bounding box [3] in the file's own axes and units.
        notes: what could not be used, or was used otherwise than the file says.
        used: other files that were read for it.
    """

    surface: Surface
    low: np.ndarray
    high: np.ndarray
    notes: tuple[MeshNote, ...] = ()
    used: tuple[Path, ...] = ()


def mesh_rank(kind: str) -> int:
    """How well a kind of file (".glb", ".solid.obj") suits where a mesh is there in several; 0 is best."""
    return next((place for place, suffix in enumerate(MESH_SUFFIXES) if kind.endswith(suffix)), len(MESH_SUFFIXES))


def read_surface(path: Path | str, up: str = "auto", forward: str = "auto", root: Path | str | None = None) -> Surface:
    """Read a mesh with its colours into our frame: z up, +x forward, centred, bounding-box diagonal 1.

    Scene-graph transforms, skins (as the joints stand) and morphs are applied. Colours come from base colour textures,
    material colours, vertex or face colours. Parts that are invisible or fully transparent, and pictures of shadows on
    the ground, are left out. What could not be used is told as a Python warning; `read_mesh` returns it.

    Args:
        path: .glb, .gltf, .obj, .ply, .off or .stl.
        up: "y", "z", "x", or "auto": y for .glb, .gltf and .obj, z for .ply, .off and .stl.
        forward: "+x", "-x", ..., "-z" in the file's axes, or "auto": +z where y is up (glTF's rule), else +x.
        root: nothing outside this folder is read; None: nothing outside two folders above the file's own.

    Raises:
        MNIFError: unreadable, empty, without area, not finite, of a kind that needs a library, or `up` and `forward`
            make no frame.
    """
    content = read_mesh(path, up, forward, root)
    for note in content.notes:
        if note.kind != NO_COLOR:
            warnings.warn(f"{path}: {note}.", stacklevel=2)
    return content.surface


def read_mesh(path: Path | str, up: str = "auto", forward: str = "auto", root: Path | str | None = None) -> MeshContent:
    """Read a mesh as `read_surface` does, with an account of what was made of it.

    Raises:
        MNIFError: see `read_surface`.
    """
    path = Path(path)
    turn = frame(path.suffix.lower(), up, forward)
    beside = Surroundings(path, None if root is None else Path(root))
    pieces = _pieces(path, beside)
    if not pieces and any(note.kind == NOT_DRAWN for note in beside.notes):
        raise MNIFError(f"{path}: no triangles, only points, lines or curves, which have no surface; mesh it first.")
    if not pieces:
        raise MNIFError(f"{path}: an empty mesh (no triangles); remove the file or export it again.")
    for piece in pieces:
        if not np.isfinite(piece.vertices[np.unique(piece.faces)]).all():
            raise MNIFError(f"{path}: a vertex is NaN or infinite; export the mesh again.")
    surface = join(_seen(path, pieces, turn, beside))
    used = surface.vertices[np.unique(surface.faces)]
    low, high = used.min(0), used.max(0)
    diagonal = float(np.linalg.norm(high - low))
    if diagonal < 1e-12 * max(1.0, float(np.abs(used).max())):
        raise MNIFError(f"{path}: all vertices lie in one point; export the mesh again.")
    surface.vertices = ((surface.vertices - (low + high) / 2) / diagonal) @ turn.T
    # Turning the box turns its centre along, so the surface stays centred; the diagonal keeps its length.
    if not face_normals(surface.vertices, surface.faces)[1].max() > 1e-10:
        raise MNIFError(f"{path}: no face has an area, so nothing of it would be seen; export the mesh again.")
    grey = not surface.textures and bool((surface.corner_colors == UNCOLOURED).all())
    if grey and not any(note.kind in COLOR_NOTES for note in beside.notes):
        beside.note(NO_COLOR)
    return MeshContent(surface, low, high, tuple(beside.notes), tuple(dict.fromkeys(beside.used)))


def _seen(path: Path, pieces: list[Surface], turn: np.ndarray, beside: Surroundings) -> list[Surface]:
    """The pieces without what nobody sees, and without shadows.

    Raises:
        MNIFError: nothing is left.
    """
    flat = [not _area(piece) for piece in pieces]
    if any(flat) and not all(flat):  # nodes of scale 0 are hidden so, and would stretch the bounding box
        beside.note(LEFT_OUT, "without area")
        pieces = [piece for piece, gone in zip(pieces, flat) if not gone]
    found, clear = [], False
    for piece in pieces:
        seen = seen_faces(piece)
        clear |= not seen.any()
        if seen.any():
            found.append(piece if seen.all() else chosen_faces(piece, seen))
    if not found:
        raise MNIFError(f"{path}: all of it is fully transparent, so nothing would be seen; export it opaque.")
    if clear:
        beside.note(LEFT_OUT, "fully transparent")
    axis = int(np.abs(turn[2]).argmax())
    sign = float(np.sign(turn[2, axis]))
    heights = [sign * piece.vertices[np.unique(piece.faces)][:, axis] for piece in found]
    floor, top = min(h.min() for h in heights), max(h.max() for h in heights)
    shadows = [is_shadow(piece, axis, sign, floor, top - floor) for piece in found]
    if any(shadows) and not all(shadows):
        beside.note(LEFT_OUT, "a shadow on the ground")
        found = [piece for piece, shadow in zip(found, shadows) if not shadow]
    if flat_and_large(found) is not None:
        beside.note(LARGE_SHEET)
    return found


def _area(piece: Surface) -> bool:
    """Whether a face of a piece has an area, beside the size of the piece itself."""
    corners = piece.vertices[piece.faces]
    size = float(np.ptp(corners.reshape(-1, 3), axis=0).max())
    return size > 0 and bool((face_normals(piece.vertices / size, piece.faces)[1] > 1e-12).any())


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


def _pieces(path: Path, beside: Surroundings) -> list[Surface]:
    readers = {".glb": read_gltf, ".gltf": read_gltf, ".obj": read_obj, ".off": read_off}
    try:
        with np.errstate(all="ignore"):  # what is not finite is told later
            return readers.get(path.suffix.lower(), read_by_trimesh)(path, beside)
    except (MNIFError, MemoryError):
        raise
    except FileNotFoundError:
        raise MNIFError(f"{path}: no such file.") from None
    except Exception as error:  # every loader raises what it likes
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else "damaged"
        if isinstance(error, KeyError):
            reason = f"{reason} is missing"
        elif isinstance(error, (AttributeError, TypeError, IndexError, OverflowError)):  # words of Python's
            reason = "damaged, or not as its format asks"
        raise MNIFError(f"{path}: cannot be read as a mesh ({reason}); remove it or export it again.") from None


def read_by_trimesh(path: Path, beside: Surroundings) -> list[Surface]:
    """The pieces of a .ply or .stl, in its own axes."""
    import trimesh

    class Finder(trimesh.resolvers.Resolver):  # type: ignore[misc]
        """Gives trimesh the pictures that a .ply names."""

        def __init__(self) -> None:
            pass

        def get(self, name: str) -> bytes:
            found = beside.find(name, elsewhere=True)
            if found is None:
                beside.note(LACKS_PICTURE, f"{name}: missing")
                raise FileNotFoundError(name)
            return found.read_bytes()

        def keys(self) -> list[str]:
            return []

        def namespaced(self, namespace: str) -> Any:
            return self

        def write(self, name: str, data: Any) -> None:
            raise OSError("read only")

    content = path.read_bytes()
    head, kind = content[:80], path.suffix[1:].lower()
    if kind == "stl" and len(content) > 84:  # trimesh takes a binary file with something behind it for a text
        end = 84 + 50 * int.from_bytes(content[80:84], "little")
        content = content[:end] if end > 84 else content
    with quiet_trimesh():
        scene = trimesh.load(io.BytesIO(content), file_type=kind, resolver=Finder(), process=False)
    parts = list(scene.geometry.values()) if isinstance(scene, trimesh.Scene) else [scene]
    if any(not isinstance(part, trimesh.Trimesh) and len(part.vertices) for part in parts):
        beside.note(NOT_DRAWN)
    return [_piece(mesh, head) for mesh in parts if isinstance(mesh, trimesh.Trimesh) and len(mesh.faces)]


def _piece(mesh: Any, head: bytes) -> Surface:
    """One trimesh geometry with its colours, as they are; `head` begins its file."""
    faces, vertices = np.asarray(mesh.faces, np.int64), np.asarray(mesh.vertices, np.float64)
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise ValueError("a face names a vertex that is not there")
    visual = mesh.visual
    kind = getattr(visual, "kind", None)
    stored = None if kind == "texture" else ply_colors(mesh)
    stored = stl_colors(mesh, head) if stored is None and not head.startswith(b"ply") else stored
    if stored is not None:
        return Surface(vertices, faces, stored)
    if kind == "vertex":
        return Surface(vertices, faces, np.asarray(visual.vertex_colors)[faces, :3] / 255.0)
    if kind == "face":
        colors = np.repeat(np.asarray(visual.face_colors)[:, None, :3] / 255.0, 3, axis=1)
        return Surface(vertices, faces, colors)
    surface = Surface(vertices, faces, np.full((len(faces), 3, 3), UNCOLOURED))
    picture = getattr(getattr(visual, "material", None), "image", None)
    if kind != "texture" or picture is None or visual.uv is None or len(visual.uv) != len(vertices):
        return surface
    surface.corner_colors = np.ones((len(faces), 3, 3))
    surface.uv, surface.texture = np.asarray(visual.uv, np.float64)[faces], np.zeros(len(faces), np.int64)
    surface.textures = [np.asarray(picture.convert("RGB"))]
    return surface
