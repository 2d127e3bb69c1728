"""Mesh files: axes, formats, and what each format carries.

GLB and OBJ are written with y up and +z forward, as glTF asks: (x, y, z) of this library becomes (y, z, x), a rotation.
PLY and STL are written in the library's own axes, z up and +x forward, as the programs expect that read them. So
`mnif_nerf.data.readers.mesh_files.read_surface` gives back what was written, whatever the format.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import trimesh

from mnif_nerf.errors import MNIFError
from mnif_nerf.export.glb import glb_bytes, linear_from_srgb, png_of, unit_normals
from mnif_nerf.files import atomic_file

__all__ = [
    "MESH_FORMATS",
    "TEXTURED_FORMATS",
    "ExportMesh",
    "Up",
    "check_up",
    "linear_from_srgb",
    "to_export_axes",
    "to_library_axes",
    "up_axis",
    "write_mesh",
]

Up = Literal["y", "z"]
MESH_FORMATS: tuple[str, ...] = ("glb", "ply", "obj", "stl")
TEXTURED_FORMATS: tuple[str, ...] = ("glb", "obj")
"""Formats that carry a picture."""
_Z_UP = ("ply", "stl")
_AXES: dict[Up, str] = {"y": "y-up", "z": "z-up"}  # as `metadata["axes"]` says it
_FROM_OTHER: dict[Up, list[int]] = {"y": [1, 2, 0], "z": [2, 0, 1]}  # which of the other frame's axes become x, y, z


class ExportMesh(trimesh.Trimesh):
    """A `trimesh.Trimesh` whose `export` to a GLB, PLY, OBJ or STL path is `write_mesh`."""

    def export(self, file_obj: Any = None, file_type: str | None = None, **kwargs: Any) -> Any:
        """As `trimesh.Trimesh.export`; a path with one of `MESH_FORMATS` goes through `write_mesh`."""
        if isinstance(file_obj, (str, Path)) and not kwargs:
            path = Path(file_obj)
            if file_type in (None, path.suffix[1:].lower()) and path.suffix[1:].lower() in MESH_FORMATS:
                return write_mesh(self, path)
        return super().export(file_obj, file_type, **kwargs)


def to_export_axes(mesh: trimesh.Trimesh) -> ExportMesh:
    """The mesh turned from the library's axes (z up, +x forward) to glTF's (y up, +z forward).

    A mesh already turned (`metadata["axes"] == "y-up"`) comes back as it is, so turning twice does no harm.
    """
    return mesh if mesh.metadata.get("axes") == "y-up" else _turned(mesh, "y")


def to_library_axes(mesh: trimesh.Trimesh) -> ExportMesh:
    """The mesh in the library's axes (z up, +x forward): `to_export_axes` undone where it was done."""
    return _turned(mesh, "z") if mesh.metadata.get("axes") == "y-up" else mesh


def up_axis(kind: str, up: Up | None = None) -> Up:
    """The upward axis in a file of one of `MESH_FORMATS`: `up`, or what the format's programs expect."""
    return up or ("z" if kind in _Z_UP else "y")


def check_up(kind: str, up: Up | None) -> None:
    """Refuse an upward axis that a format cannot have.

    Raises:
        MNIFError: an unknown axis, or z for a GLB file.
    """
    if up not in (None, "y", "z"):
        raise MNIFError(f"`up` {up} is not known; use y or z.")
    if kind == "glb" and up == "z":
        raise MNIFError("`up` z: glTF files are y up by definition, and programs turn them; leave it out for glb.")


def write_mesh(mesh: trimesh.Trimesh, path: Path | str, up: Up | None = None) -> Path:
    """Write a mesh as .glb, .ply, .obj or .stl, atomically, with its normals.

    GLB and OBJ have y up and +z forward, PLY and STL z up and +x forward. Vertex colours go into GLB, PLY and OBJ, a
    picture (`visual` of kind "texture") into GLB and OBJ; STL has no colours. Vertex colours in GLB are linear (what
    glTF defines COLOR_0 to be), so three.js, Blender and the like show the field's colours; pictures, PLY and OBJ keep
    the sRGB values. Beside a textured `car.obj` lie `car.mtl` and `car_color.png`.

    Args:
        mesh: in the library's axes, or in glTF's where `metadata["axes"]` says "y-up".
        path: the suffix chooses the format.
        up: "y" or "z" for another upward axis than the format's own (not for GLB).

    Raises:
        MNIFError: an unknown suffix, an axis that the format cannot have, an empty mesh, NaNs, or a folder that cannot
            be written.
    """
    path = Path(path)
    kind = path.suffix[1:].lower()
    if kind not in MESH_FORMATS:
        raise MNIFError(f"{path}: unknown mesh format {path.suffix!r}; use one of {', '.join(MESH_FORMATS)}.")
    check_up(kind, up)
    if len(mesh.faces) == 0:
        raise MNIFError(f"{path}: the mesh has no triangles; lower the level or train for longer.")
    if not np.isfinite(mesh.vertices).all():
        raise MNIFError(f"{path}: the mesh has NaN or infinite vertices; export it again from a sound model.")
    turned = to_export_axes(mesh) if up_axis(kind, up) == "y" else to_library_axes(mesh)
    for name, content in _contents(turned, kind, path).items():
        with atomic_file(path.with_name(name)) as temporary:
            temporary.write_bytes(content)
    return path


def _contents(mesh: trimesh.Trimesh, kind: str, path: Path) -> dict[str, bytes]:
    """The files of a mesh by their names, those that others refer to first."""
    if kind == "glb":
        return {path.name: glb_bytes(mesh)}
    if kind == "obj" and mesh.visual.kind == "texture":
        return _textured_obj(mesh, path)
    if mesh.visual.kind == "texture":  # the picture's colours at the vertices, for a format without pictures
        mesh = mesh.copy()
        mesh.visual = mesh.visual.to_color()
    normals = {"obj": {"include_normals": True}, "ply": {"vertex_normal": True}}
    content = trimesh.Trimesh.export(mesh, file_type=kind, **normals.get(kind, {}))
    return {path.name: content.encode() if isinstance(content, str) else content}


def _textured_obj(mesh: trimesh.Trimesh, path: Path) -> dict[str, bytes]:
    """An OBJ file, its material and its picture.

    Vertices that were split where the atlas is cut are one again: OBJ counts positions and texture coordinates apart.
    """
    positions, index = np.unique(np.asarray(mesh.vertices, np.float32), axis=0, return_inverse=True)
    index = index.reshape(-1)
    normals = np.empty_like(positions)
    normals[index] = unit_normals(mesh)
    corners = np.stack([index[mesh.faces], np.asarray(mesh.faces), index[mesh.faces]], axis=-1) + 1
    picture, material = f"{path.stem}_color.png", f"{path.stem}.mtl"
    lines = [
        f"# mnif_nerf\nmtllib {material}\no object",
        _rows("v", positions),
        _rows("vt", np.asarray(mesh.visual.uv)),
        _rows("vn", normals),
        "usemtl baked",
        "\n".join("f {}/{}/{} {}/{}/{} {}/{}/{}".format(*row) for row in corners.reshape(-1, 9).tolist()),
    ]
    words = f"newmtl baked\nKa 0 0 0\nKd 1 1 1\nKs 0 0 0\nNs 0\nd 1\nillum 1\nmap_Kd {picture}\n"
    return {picture: png_of(mesh), material: words.encode(), path.name: ("\n".join(lines) + "\n").encode()}


def _rows(word: str, values: np.ndarray) -> str:
    pattern = word + " %.8g" * values.shape[1]
    return "\n".join(pattern % tuple(row) for row in values.tolist())


def _turned(mesh: trimesh.Trimesh, up: Up) -> ExportMesh:
    """The mesh in the other frame; colours, picture and normals go along."""
    order = _FROM_OTHER[up]
    turned = ExportMesh(np.asarray(mesh.vertices)[:, order], np.asarray(mesh.faces).copy(), process=False)
    turned.metadata.update(mesh.metadata, axes=_AXES[up])
    turned.vertex_normals = np.asarray(mesh.vertex_normals)[:, order]
    if mesh.visual.kind == "vertex":
        turned.visual = trimesh.visual.ColorVisuals(turned, vertex_colors=mesh.visual.vertex_colors.copy())
    elif mesh.visual.kind == "texture":
        turned.visual = mesh.visual.copy()
    return turned
