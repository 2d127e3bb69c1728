"""Mesh files of every format: what is written comes back through our own reader, and holds what its format promises."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image
from scipy.spatial import cKDTree

from mnif_nerf.data.geometry.raytrace import Surface, sample_texture
from mnif_nerf.data.readers.mesh_files import read_surface
from mnif_nerf.errors import MNIFError
from mnif_nerf.export.mesh_files import (
    MESH_FORMATS,
    ExportMesh,
    to_export_axes,
    to_library_axes,
    write_mesh,
)

LOW, HIGH = np.array([-0.4, -0.1, -0.05]), np.array([0.3, 0.2, 0.35])  # no two edges alike, centred nowhere


def painted_box() -> ExportMesh:
    """A finely divided box with a nose at +x, in the library's axes, whose colour tells where on it one is."""
    box = trimesh.creation.box(bounds=[LOW, HIGH])
    for _ in range(3):
        box = box.subdivide()
    vertices = np.array(box.vertices)
    front = vertices[:, 0] > HIGH[0] - 1e-6
    vertices[front, 0] += 0.1 * (1 - np.abs(vertices[front, 2] - 0.15) / 0.2)
    mesh = ExportMesh(vertices, box.faces, process=False)
    mesh.metadata["axes"] = "z-up"
    mesh.visual = trimesh.visual.ColorVisuals(mesh, vertex_colors=paint(vertices))
    return mesh


def paint(points: np.ndarray) -> np.ndarray:
    """uint8 colours [N, 3] of places [N, 3]: dark where x is small, so that a second encoding would be seen."""
    return np.rint(255 * np.clip((points - LOW) / (HIGH - LOW), 0.02, 0.98)).astype(np.uint8)


def textured_box() -> ExportMesh:
    """A box whose six sides have six colours of a picture; its vertices are split between them."""
    box = trimesh.creation.box(bounds=[LOW, HIGH])
    side = np.abs(box.face_normals).argmax(1) * 2 + (box.face_normals.max(1) > 0.5)
    order = np.argsort(side, kind="stable")
    corners = np.array(box.faces)[order].reshape(-1)
    mesh = ExportMesh(np.array(box.vertices)[corners], np.arange(len(corners)).reshape(-1, 3), process=False)
    picture = np.zeros((8, 48, 3), np.uint8)
    for k in range(6):
        picture[:, 8 * k : 8 * k + 8] = (40 * k + 20, 250 - 40 * k, 128)
    picture[4:] //= 2  # the lower half is dark: a picture that was turned over would show
    flat = np.array([[0.3, 0.6], [0.7, 0.6], [0.5, 0.9]])  # in the upper half
    uv = np.concatenate([(flat + [k, 0]) / [6, 1] for k in range(6) for _ in range(2)])
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=Image.fromarray(picture))
    mesh.visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
    mesh.metadata["axes"] = "z-up"
    return mesh


def normalised(vertices: np.ndarray) -> np.ndarray:
    """As the reader leaves them: centred, bounding-box diagonal 1."""
    low, high = vertices.min(0), vertices.max(0)
    return (vertices - (low + high) / 2) / np.linalg.norm(high - low)


def colors_at_centres(surface: Surface) -> np.ndarray:
    """Colours [F, 3] in [0, 1] at the centres of the faces, pictures included."""
    colors = surface.corner_colors.mean(axis=1)
    if surface.texture is not None:
        assert surface.uv is not None
        assert (surface.texture == 0).all()
        colors = colors * sample_texture(surface.textures[0], surface.uv.mean(axis=1))
    return colors


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("kind", MESH_FORMATS)
def test_what_is_written_comes_back(kind: str, turned: bool, tmp_path: Path) -> None:
    mesh = painted_box()
    path = write_mesh(to_export_axes(mesh) if turned else mesh, tmp_path / f"box.{kind}")
    surface = read_surface(path)  # up: auto
    distance, nearest = cKDTree(normalised(np.array(mesh.vertices))).query(surface.vertices)
    assert distance.max() < 1e-5  # neither turned nor mirrored
    assert len(np.unique(nearest)) == len(mesh.vertices)
    again = trimesh.Trimesh(surface.vertices, surface.faces)  # equal vertices are made one, as STL needs
    assert again.is_watertight
    assert again.volume == pytest.approx(
        mesh.volume / np.ptp(mesh.vertices, axis=0).dot(np.ptp(mesh.vertices, axis=0)) ** 1.5
    )
    raw = trimesh.load(path, force="mesh")
    assert np.sort(raw.extents) == pytest.approx(np.sort(mesh.extents), abs=1e-6)  # nobody scaled it
    if kind != "stl":
        seen = surface.corner_colors * 255
        assert np.abs(seen - paint(np.array(mesh.vertices))[nearest][surface.faces]).max() < 1.0


@pytest.mark.parametrize("kind", ["glb", "obj"])
def test_pictures_come_back(kind: str, tmp_path: Path) -> None:
    mesh = textured_box()
    surface = read_surface(write_mesh(mesh, tmp_path / f"a box.{kind}"))
    centres = surface.vertices[surface.faces].mean(axis=1)
    side = np.abs(centres / np.ptp(surface.vertices, axis=0)).argmax(1)
    side = side * 2 + (np.take_along_axis(centres, side[:, None], 1)[:, 0] > 0)
    expected = np.stack([40 * side + 20, 250 - 40 * side, np.full(len(side), 128)], axis=1)
    assert colors_at_centres(surface) * 255 == pytest.approx(expected)
    names = {p.name for p in tmp_path.iterdir()}
    assert names == ({"a box.glb"} if kind == "glb" else {"a box.obj", "a box.mtl", "a box_color.png"})


def test_an_obj_with_a_picture_is_closed_where_its_atlas_is_cut(tmp_path: Path) -> None:
    lines = write_mesh(textured_box(), tmp_path / "box.obj").read_text().splitlines()
    assert sum(line.startswith("v ") for line in lines) == 8
    faces = [[int(corner.split("/")[0]) - 1 for corner in line.split()[1:]] for line in lines if line.startswith("f ")]
    assert trimesh.Trimesh(np.zeros((8, 3)), faces, process=False).is_watertight


def test_normals_are_written(tmp_path: Path) -> None:
    mesh = painted_box()
    told = np.array([[0.6, 0.0, 0.8]] * len(mesh.vertices))  # not its own, so that computing them again would show
    mesh.vertex_normals = told
    content = write_mesh(mesh, tmp_path / "box.glb").read_bytes()
    header = 20 + struct.unpack("<I", content[12:16])[0]
    tree = json.loads(content[20:header])
    view = tree["bufferViews"][
        tree["accessors"][tree["meshes"][0]["primitives"][0]["attributes"]["NORMAL"]]["bufferView"]
    ]
    normals = np.frombuffer(content, np.float32, len(told) * 3, header + 8 + view["byteOffset"]).reshape(-1, 3)
    assert normals == pytest.approx(told[:, [1, 2, 0]])
    assert trimesh.load(write_mesh(mesh, tmp_path / "box.ply"), process=False).metadata["_ply_raw"]["vertex"]["data"][
        "nz"
    ] == pytest.approx(0.8)
    rows = [line.split() for line in write_mesh(mesh, tmp_path / "box.obj").read_text().splitlines()]
    assert {tuple(np.round(np.array(row[1:], float), 4)) for row in rows if row and row[0] == "vn"} == {(0.0, 0.8, 0.6)}


def test_a_picture_becomes_vertex_colours_where_the_format_has_none(tmp_path: Path) -> None:
    again = trimesh.load(write_mesh(textured_box(), tmp_path / "box.ply"), force="mesh", process=False)
    assert len(np.unique(again.visual.vertex_colors, axis=0)) == 6


def test_the_upward_axis_can_be_chosen(tmp_path: Path) -> None:
    mesh = painted_box()
    expected = normalised(np.array(mesh.vertices))
    for kind, up in (("obj", "z"), ("stl", "y"), ("ply", "y"), ("obj", "y")):
        surface = read_surface(write_mesh(mesh, tmp_path / f"{up}.{kind}", up), up)  # type: ignore[arg-type]
        assert cKDTree(expected).query(surface.vertices)[0].max() < 1e-5
    with pytest.raises(MNIFError, match="y up by definition"):
        write_mesh(mesh, tmp_path / "z.glb", "z")
    with pytest.raises(MNIFError, match="use y or z"):
        write_mesh(mesh, tmp_path / "x.obj", "x")  # type: ignore[arg-type]
    assert len(list(tmp_path.iterdir())) == 4


def test_turning_there_and_back_changes_nothing() -> None:
    for mesh in (painted_box(), textured_box()):
        back = to_library_axes(to_export_axes(mesh))
        assert (back.vertices == mesh.vertices).all()
        assert back.vertex_normals == pytest.approx(mesh.vertex_normals)
        assert back.visual.kind == mesh.visual.kind
        assert to_library_axes(mesh) is mesh
