"""Leaves on cards: what pictures cut out of faces is no part of solids, and their outlines have no fringe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnif_nerf.data.geometry.cut_outs import without_cut_outs
from mnif_nerf.data.geometry.raytrace import Surface, face_normals
from mnif_nerf.errors import MNIFError

GREEN = (30, 180, 30)


def disc(alpha: int = 255, radius: float = 0.3, size: int = 128) -> np.ndarray:
    """A green disc of alpha `alpha`, and clear black around it."""
    place = (np.arange(size) + 0.5) / size - 0.5
    picture = np.zeros((size, size, 4), np.uint8)
    picture[np.hypot(*np.meshgrid(place, place)) < radius] = (*GREEN, alpha)
    return picture


def card(picture: np.ndarray, cutoff: float = 0.5) -> Surface:
    """A square of edge 1, of two triangles, with the picture on it."""
    corners = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], float) - [0.5, 0.5, 0]
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    uv = (corners[faces][..., :2] + 0.5).astype(np.float32)
    ones = np.ones((2, 3))
    return Surface(
        corners, faces, np.ones((2, 3, 3)), uv, np.zeros(2, int), [picture],
        [("clamp", "clamp")], ones, np.full(2, cutoff),
    )  # fmt: skip


def test_outlines_are_followed() -> None:
    surface = without_cut_outs(card(disc()), 0.03)
    area = face_normals(surface.vertices, surface.faces)[1].sum() / 2
    assert area == pytest.approx(np.pi * 0.3**2, rel=0.03)
    used = surface.vertices[np.unique(surface.faces)]
    assert np.hypot(used[:, 0], used[:, 1]).max() < 0.315
    assert (surface.textures[0][..., :3] == GREEN).all()  # also beside the disc
    faces = np.arange(len(surface.faces))
    assert (surface.texels(faces, np.full((len(faces), 3), 1 / 3))[:, 1] > 0.7).all()


def test_fine_pictures_keep_their_share() -> None:
    stripes = disc(radius=1.0)
    stripes[:, ::4] = 0
    share = without_cut_outs(card(stripes), 0.05)
    assert face_normals(share.vertices, share.faces)[1].sum() / 2 == pytest.approx(1.0)  # three quarters are there


def test_what_is_not_cut_stays_as_it_is() -> None:
    for surface in (card(disc(radius=1.0)), card(disc(alpha=60, radius=1.0), cutoff=0.0), card(disc(), cutoff=-1.0)):
        assert without_cut_outs(surface, 0.03) is surface
    assert not len(without_cut_outs(card(disc(alpha=60)), 0.03).faces)
    assert len(without_cut_outs(card(disc(), 0.5), 1e-4, most=500).faces) < 1000


def test_points_of_leaves_on_cards(tmp_path: Path) -> None:
    pytest.importorskip("manifold3d")
    pytest.importorskip("igl")
    from tiny_gltf import UV, Gltf, png

    from mnif_nerf.data.geometry.surface_points import PointCounts
    from mnif_nerf.data.readers.mesh_input import MeshInput
    from mnif_nerf.data.stores.surface_jobs import mesh_points

    def points(picture: np.ndarray) -> Any:
        file = Gltf()
        texture = file.texture(png(picture))
        material = {"pbrMetallicRoughness": {"baseColorTexture": texture}, "alphaMode": "MASK", "doubleSided": True}
        file.node(mesh=file.box(material, TEXCOORD_0=file.array(UV)))
        return mesh_points(MeshInput(file.write(tmp_path / "a.glb")), PointCounts.of(1000), np.random.default_rng(0))

    whole, facts = points(disc(radius=1.0))
    assert facts["cut"] == facts["sheets"] == 0
    leaves, facts = points(disc(radius=0.2))
    assert facts["cut"] == 1
    assert facts["sheets"] > 0
    assert leaves.color[:, 1].min() > 0.69  # green all over, without a black fringe
    inside = [(points.distance[points.kind == 0] < 0).mean() for points in (leaves, whole)]
    assert inside[0] < 0.5 * inside[1]
    with pytest.raises(MNIFError, match="nothing would be seen"):
        points(disc(alpha=20, radius=1.0))
