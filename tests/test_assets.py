"""Assets: what a baked picture shows is what the field has there, on few triangles, at the size and place asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from PIL import Image
from tiny_model import Ball, tiny_model
from tiny_painted import PaintedBall, paint

from mnif_nerf import machine
from mnif_nerf.errors import MNIFError
from mnif_nerf.export.assets import Asset, AssetOptions, make_assets, write_assets
from mnif_nerf.export.atlas import Atlas, padding_of, unwrap
from mnif_nerf.export.bake import rasterise, spread
from mnif_nerf.export.mesh import field_to_mesh
from mnif_nerf.export.mesh_files import ExportMesh, to_library_axes
from mnif_nerf.objects.radiance import NeuralRadiance
from mnif_nerf.objects.shape import NeuralShape

CENTER = np.array([0.1, -0.05, 0.08])


@pytest.fixture(scope="module")
def few() -> Asset:
    """A ball of 200 triangles with a picture of 256 texels."""
    (asset,) = make_assets(PaintedBall(), AssetOptions(resolution=48, faces=200, texture=256))
    return asset


def textured(asset: Asset) -> ExportMesh:
    assert asset.textured is not None
    return asset.textured


def seen(mesh: ExportMesh, faces: np.ndarray, weights: np.ndarray, shrink: int = 1) -> np.ndarray:
    """Colours [N, 3] that a bilinear filter reads, of a picture shrunk as mipmaps are."""
    picture = mesh.visual.material.baseColorTexture
    size = picture.width // shrink
    values = np.asarray(picture.resize((size, size), Image.Resampling.BOX), np.float64) / 255
    uv = np.einsum("nk,nkc->nc", weights, np.asarray(mesh.visual.uv)[mesh.faces[faces]])
    place = np.stack([1 - uv[:, 1], uv[:, 0]], axis=1) * size - 0.5
    first = np.floor(place).astype(int)
    share = place - first
    result = np.zeros((len(uv), 3))
    for down in (0, 1):
        for right in (0, 1):
            row, column = np.clip(first + [down, right], 0, size - 1).T
            part = np.abs(1 - down - share[:, 0]) * np.abs(1 - right - share[:, 1])
            result += part[:, None] * values[row, column]
    return result


def somewhere(mesh: ExportMesh, count: int = 20_000, border: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random triangles [N], weights [N, 3] in them (on their edges with `border`), and the directions there."""
    random = np.random.default_rng(0)
    faces = random.choice(len(mesh.faces), count, p=mesh.area_faces / mesh.area)
    weights = random.dirichlet([1, 1, 1], count)
    if border:
        weights[np.arange(count), random.integers(3, size=count)] = 0
        weights /= weights.sum(1, keepdims=True)
    points = np.einsum("nk,nkc->nc", weights, np.asarray(to_library_axes(mesh).vertices)[mesh.faces[faces]]) - CENTER
    return faces, weights, points / np.linalg.norm(points, axis=1, keepdims=True)


def test_a_picture_shows_the_field_everywhere_cuts_included(few: Asset) -> None:
    for border in (0.0, 1.0):
        faces, weights, direction = somewhere(textured(few), border=border)
        error = np.abs(seen(textured(few), faces, weights) - paint(direction))
        assert error.mean() < 0.02
        assert np.quantile(error, 0.97) < 0.05  # the rest are edges of paint, which a filter softens
    # The same read one and two mipmaps down: nothing leaks in from beyond the charts.
    faces, weights, direction = somewhere(textured(few), border=1.0)
    for shrink, bound in ((2, 0.03), (4, 0.06)):
        assert np.abs(seen(textured(few), faces, weights, shrink) - paint(direction)).mean() < bound


def test_few_triangles_carry_what_their_vertices_cannot(few: Asset) -> None:
    faces, weights, direction = somewhere(textured(few))
    baked = np.abs(seen(textured(few), faces, weights) - paint(direction)).mean()
    colors = np.asarray(few.mesh.visual.vertex_colors)[few.mesh.faces[faces], :3] / 255
    at_vertices = np.abs(np.einsum("nk,nkc->nc", weights, colors) - paint(direction)).mean()
    assert len(few.mesh.faces) == 200
    assert baked < at_vertices / 5


def test_texels_are_carried_to_the_surface_before_decimation() -> None:
    asked = []

    class Asking(PaintedBall):
        def surface_colors(self, points: np.ndarray, normals: np.ndarray) -> np.ndarray:
            asked.append((np.linalg.norm(points - CENTER, axis=1), np.einsum("nc,nc->n", points - CENTER, normals)))
            return super().surface_colors(points, normals)

    make_assets(Asking(), AssetOptions(resolution=48, faces=60, texture=64))
    (at_vertices, _), (radius, along) = asked
    assert radius == pytest.approx(0.3, abs=0.004)  # though the middles of such triangles lie 0.04 inside
    assert along / radius == pytest.approx(1, abs=0.02)
    assert len(radius) > 10 * len(at_vertices)


def test_atlases_have_room_and_no_flat_triangles(few: Asset) -> None:
    mesh = textured(few)
    uv = np.asarray(mesh.visual.uv)
    assert uv.min() >= 0
    assert uv.max() <= 1
    sides = uv[mesh.faces][:, 1:] - uv[mesh.faces][:, :1]
    areas = np.abs(sides[:, 0, 0] * sides[:, 1, 1] - sides[:, 0, 1] * sides[:, 1, 0]) / 2
    assert areas.min() > 0.01 * areas.mean()
    assert 0.4 < areas.sum() < 1
    atlas = unwrap(few.mesh, 256)
    texels = rasterise(atlas)
    inside = (texels.weights > 1e-9).all(axis=1)
    assert inside.sum() == pytest.approx(areas.sum() * 256**2, rel=0.03)  # no two triangles share a texel
    charts = trimesh.graph.connected_component_labels(
        trimesh.Trimesh(np.zeros((len(atlas.uv), 3)), atlas.faces, process=False).edges
    )
    owner = np.full((256, 256), -1)
    owner[texels.row[inside], texels.column[inside]] = charts[atlas.faces[texels.face[inside], 0]]
    for step in range(1, padding_of(256) + 1):
        for first, second in ((owner[step:], owner[:-step]), (owner[:, step:], owner[:, :-step])):
            assert ((first == second) | (first < 0) | (second < 0)).all()  # charts keep their distance


def test_assets_are_closed_and_smooth_where_the_atlas_is_cut(few: Asset) -> None:
    assert few.mesh.is_watertight
    mesh = textured(few)
    assert len(mesh.vertices) > len(few.mesh.vertices)
    welded = trimesh.Trimesh(mesh.vertices, mesh.faces)
    welded.merge_vertices(merge_tex=True, merge_norm=True)
    assert welded.is_watertight
    _, first, same = np.unique(np.asarray(mesh.vertices).round(9), axis=0, return_index=True, return_inverse=True)
    assert mesh.vertex_normals == pytest.approx(mesh.vertex_normals[first][same.reshape(-1)])


@pytest.mark.parametrize(("origin", "low", "middle"), [("bottom", 0.0, 0.0), ("centre", -2.1, 0.0), (None, None, None)])
def test_scale_and_origin(origin: Any, low: float | None, middle: float | None) -> None:
    (asset,) = make_assets(PaintedBall(), AssetOptions(resolution=24, scale=4.2, origin=origin))
    assert asset.mesh.extents.max() == pytest.approx(4.2)
    x, y, z = asset.mesh.bounds.T  # y up
    if origin is None:
        assert np.array([z.mean(), x.mean(), y.mean()]) == pytest.approx(CENTER * 7, abs=0.05)
    else:
        assert y.min() == pytest.approx(low, abs=0.05)
        assert (x.mean(), z.mean()) == pytest.approx((middle, middle))
    assert asset.textured is None
    assert asset.suffix == ""


def test_levels_of_detail_lie_on_one_another(tmp_path: Path) -> None:
    options = AssetOptions(resolution=32, lods=(400, 100, 40), texture=64, scale=2.0, origin="bottom")
    files = write_assets(PaintedBall(), tmp_path / "a ball.v2.glb", options)
    assert [file.name for file in files] == [f"a ball.v2_lod{k}.glb" for k in range(3)]
    read = [trimesh.load(file, force="mesh") for file in files]
    assert [len(mesh.faces) for mesh in read] == [400, 100, 40]
    assert read[0].extents.max() == pytest.approx(2.0, abs=1e-6)
    assert read[0].bounds[0, 1] == pytest.approx(0, abs=1e-6)
    for mesh in read:
        assert mesh.bounds.mean(0) == pytest.approx([0, 1, 0], abs=0.08)
        assert mesh.visual.material.baseColorTexture.size == (64, 64)


def test_what_has_a_surface_exports_itself(tmp_path: Path) -> None:
    item = NeuralRadiance(None, Ball(), "ball")  # type: ignore[arg-type]
    (path,) = item.export(tmp_path / "ball.obj", AssetOptions(resolution=24, faces=100, texture=32))
    assert {file.name for file in tmp_path.iterdir()} == {"ball.obj", "ball.mtl", "ball_color.png"}
    assert Image.open(tmp_path / "ball_color.png").size == (32, 32)
    assert len(trimesh.load(path, force="mesh").faces) == 100


def test_spread_takes_the_nearest() -> None:
    picture = np.zeros((5, 5, 3), np.uint8)
    where = np.zeros((5, 5), bool)
    picture[1, 1], picture[3, 4] = 10, 20
    where[1, 1] = where[3, 4] = True
    result = spread(picture, where)[..., 0]
    assert result[0].tolist() == [10, 10, 10, 10, 20]
    assert result[4].tolist() == [10, 10, 20, 20, 20]


def test_triangles_smaller_than_a_texel_lose_none() -> None:
    """A strip thinner than a texel that no centre lies in still has its texels asked."""
    uv = np.array([[0.1, 0.126], [0.9, 0.126], [0.5, 0.124]])
    texels = rasterise(Atlas(np.arange(3), np.array([[0, 1, 2]]), uv, 16))
    assert len(texels.row) >= 12
    assert texels.weights.sum(1) == pytest.approx(1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"texture": 8}, "`texture` 8 is out of range; use 16 to 8192"),
        ({"texture": 100_000}, "`texture` 100000 is out of range"),
        ({"texture": 16, "resolution": 48}, "`texture` 16 is too small for the .* charts of .* triangles"),
        ({"faces": 3}, "`faces` 3 cannot close a surface"),
        ({"lods": (1000, 2000)}, "`lods` 1000,2000: must descend"),
        ({"lods": (1000, 1000)}, "must descend"),
        ({"lods": (1000, 2)}, "`lods` 2 cannot close"),
        ({"lods": (1000,), "faces": 100}, "give one of them"),
        ({"scale": 0.0}, "`scale` 0.0: expected a finite number"),
        ({"scale": float("nan")}, "`scale` nan"),
        ({"origin": "top"}, "`origin` top is not known"),
        ({"up": "x"}, "`up` x is not known"),
        ({"resolution": 1}, "`resolution` 1"),
    ],
)
def test_bad_requests_are_one_sentence(options: dict, words: str) -> None:
    with pytest.raises(MNIFError, match=words) as caught:
        make_assets(PaintedBall(), AssetOptions(**{"resolution": 16, **options}))
    assert "\n" not in str(caught.value)


def test_formats_without_pictures_and_objects_without_colours(tmp_path: Path) -> None:
    with pytest.raises(MNIFError, match="`texture` 64: stl cannot carry a picture; write glb or obj too"):
        write_assets(PaintedBall(), tmp_path / "ball.stl", AssetOptions(texture=64))
    with pytest.raises(MNIFError, match="unknown mesh format"):
        write_assets(PaintedBall(), tmp_path / "ball.fbx")
    with pytest.raises(MNIFError, match="y up by definition"):
        write_assets(PaintedBall(), tmp_path / "ball.glb", AssetOptions(up="z"))
    field = tiny_model().field.collapse(tiny_model().latents[0])
    with pytest.raises(MNIFError, match="box: has no colours to bake; leave out `texture`"):
        make_assets(NeuralShape(None, field, "box"), AssetOptions(resolution=16, texture=64))
    assert list(tmp_path.iterdir()) == []


def test_a_picture_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "available_memory", lambda: 10**8)
    with pytest.raises(MNIFError, match=r"`texture` 2048 needs about 0.3 GiB of memory .* use at most 1000"):
        make_assets(PaintedBall(), AssetOptions(resolution=16, texture=2048))


def test_a_whole_surface_can_be_painted_too() -> None:
    (asset,) = make_assets(PaintedBall(), AssetOptions(resolution=16, texture=64))
    assert len(asset.mesh.faces) == len(field_to_mesh(Ball(0.3, tuple(CENTER)), 16).faces)
