"""Objects of models of signed distance and colour: pictures, meshes, voxels, files, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_model import Rounded, tiny_surface_model

from mnif_nerf import MNIFPipeline
from mnif_nerf.errors import MNIFError
from mnif_nerf.fields.distance import DistanceField
from mnif_nerf.modalities import get
from mnif_nerf.objects.base import NeuralObject
from mnif_nerf.objects.surface import NeuralSurface


@pytest.fixture(scope="module")
def thing() -> NeuralSurface:
    item = MNIFPipeline(tiny_surface_model()).instance(0)
    assert isinstance(item, NeuralSurface)
    return item


def test_a_mesh_is_coloured_closed_and_in_gltfs_axes(thing: NeuralSurface) -> None:
    mesh = thing.mesh(32, keep="all")
    assert mesh.is_watertight
    assert mesh.metadata["axes"] == "y-up"
    points = np.array(mesh.vertices)[:, [2, 0, 1]]
    inner = (np.abs(points) < 0.47).all(axis=1)
    assert inner.sum() > 100
    assert thing.distance(torch.tensor(points[inner], dtype=torch.float32)).abs().max() < 3e-3
    seen = mesh.visual.vertex_colors[:, :3] / 255
    assert np.abs(seen - thing.surface_colors(points, points)).max() < 0.003
    assert seen.std(axis=0).min() > 0.01


def test_colours_are_those_of_the_nearest_surface() -> None:
    item = NeuralSurface.__new__(NeuralSurface)
    item.solid = DistanceField(Rounded(radius=0.3))
    points = np.array([[0.33, 0.0, 0.0], [0.0, 0.28, 0.0]])
    on = torch.tensor([[0.3, 0.0, 0.0], [0.0, 0.3, 0.0]])
    assert item.surface_colors(points, points) == pytest.approx(item.solid.color(on).numpy(), abs=1e-5)


def test_voxels_are_where_the_distance_is_below_the_level(thing: NeuralSurface) -> None:
    for level in (None, 0.02):
        cells = thing.occupancy(40, level)
        axis = (torch.arange(40) + 0.5) / 40 - 0.5
        points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).view(-1, 3)
        assert (cells.flatten() == (thing.distance(points) < (level or 0.0)).numpy()).all()


def test_files_bring_the_class_back(thing: NeuralSurface, tmp_path: Path) -> None:
    again = NeuralObject.load(thing.save(tmp_path / "thing.safetensors"))
    assert isinstance(again, NeuralSurface)
    points = torch.rand(50, 3) - 0.5
    assert torch.equal(again.distance(points), thing.distance(points))
    assert np.array_equal(np.asarray(again.render(resolution=24)), np.asarray(thing.render(resolution=24)))


def test_without_colour_meshes_have_none_and_pictures_are_grey() -> None:
    item = MNIFPipeline(tiny_surface_model(channels=1)).instance(0)
    assert not item.has_color
    assert item.mesh(24, keep="all").visual.kind is None
    picture = np.asarray(item.render(resolution=24)).astype(int)
    assert np.ptp(picture, axis=-1).max() < 40
    assert picture.std() > 5


def test_what_is_no_distance_is_refused(thing: NeuralSurface) -> None:
    told = r"`level` 0\.5 is no distance that is learned; use one between -0\.03 and 0\.03"
    with pytest.raises(MNIFError, match=told):
        thing.mesh(24, level=0.5)
    with pytest.raises(MNIFError, match="no distance"):
        get("sdf").check_level(float("nan"))
    get("sdf").check_level(-0.02)


def test_layers_are_mixed(thing: NeuralSurface) -> None:
    pipe = MNIFPipeline(tiny_surface_model())
    mixed = pipe.mix_shape_and_color(0, 1)
    assert isinstance(mixed, NeuralSurface)
    assert not mixed.has_latent
    assert mixed.occupancy(16).any()
