"""Editing objects by their latents and by their coefficients, layer by layer, on tiny untrained models."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_model import tiny_image_model, tiny_model, tiny_surface_model, tiny_voxel_model

from mnif_nerf.errors import MNIFError
from mnif_nerf.fields.modulations.mixture import MixtureField
from mnif_nerf.fields.spec import FieldSpec
from mnif_nerf.pipelines.generation import MNIFPipeline, NeuralObject, NeuralRadiance
from mnif_nerf.pipelines.model_folder import StoredModel, write_model
from mnif_nerf.rendering.cameras import Intrinsics, orbit_pose

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

LAYERS = 3  # of the tiny models' networks
POINTS = torch.rand(200, 3, generator=torch.Generator().manual_seed(0)) - 0.5


def weights_of(item: NeuralObject) -> list[torch.Tensor]:
    return [*item.field.weights, *item.field.biases]


def same_network(a: NeuralObject, b: NeuralObject) -> bool:
    return all(torch.allclose(x, y, atol=1e-4, rtol=1e-4) for x, y in zip(weights_of(a), weights_of(b)))


# --- mixing by latents and by layers ----------------------------------------------------------------------


@pytest.mark.parametrize("shares", [0.0, 0.3, 1.0, -0.5])
def test_mixing_networks_is_mixing_latents(pipe: MNIFPipeline, shares: float) -> None:
    """The networks are linear in coefficients, and those affine in the latent."""
    a, b = pipe.instance(0), pipe.instance(1)
    mixed = [(1 - shares) * x + shares * y for x, y in zip(weights_of(a), weights_of(b))]
    by_latent = pipe.decode(torch.lerp(a.latent, b.latent, shares))
    for own, expected in zip(weights_of(by_latent), mixed):
        assert torch.allclose(own, expected, atol=1e-4, rtol=1e-4)
    by_layer = pipe.mix_layers(a, b, [shares] * LAYERS)
    assert by_layer.has_latent
    assert torch.allclose(by_layer.latent, by_latent.latent, atol=1e-6)
    alphas = torch.lerp(pipe.coefficients(a), pipe.coefficients(b), shares)
    assert torch.allclose(alphas, pipe.coefficients(by_latent), atol=1e-5)


def test_each_layer_comes_from_where_it_is_said_to(pipe: MNIFPipeline) -> None:
    a, b = pipe.instance(0), pipe.instance(1)
    mixed = pipe.mix_layers("car_00", b, [0, 1, 0.25], name="patchwork")
    for layer, share in enumerate((0, 1, 0.25)):
        for own, x, y in zip(*((o.field.weights[layer], o.field.biases[layer]) for o in (mixed, a, b))):
            assert torch.allclose(own, torch.lerp(x, y, share), atol=1e-4, rtol=1e-4)
    assert (mixed.name, mixed.has_latent) == ("patchwork", False)
    assert "without a latent" in repr(mixed)
    assert mixed.cells is pipe.model.cells
    assert mixed.picture(8).size == (8, 8)


def test_an_object_without_a_latent_says_so(pipe: MNIFPipeline, tmp_path: Path) -> None:
    mixed = pipe.mix_layers(0, 1, [0, 0, 1], name="patchwork")
    with pytest.raises(MNIFError, match=r"patchwork: was mixed layer by layer.*project"):
        _ = mixed.latent
    with pytest.raises(MNIFError, match="no latent gives it"):
        pipe.nearest(mixed)
    again = NeuralObject.load(mixed.save(tmp_path / "object.safetensors"))
    assert not again.has_latent
    assert torch.equal(again.coefficients, mixed.coefficients)
    assert same_network(again, mixed)
    # and it can be edited further
    back = pipe.mix_layers(again, 0, [0, 0, 1])
    assert same_network(back, pipe.instance(0))
    half = pipe.interpolate(again, "car_00", num=3)
    assert same_network(half[0], mixed)
    assert same_network(half[1], pipe.mix_layers(0, 1, [0, 0, 0.5]))


def test_projection(pipe: MNIFPipeline) -> None:
    own = pipe.instance(2)
    latent, left = pipe.project(own)
    assert torch.equal(latent, own.latent)
    assert left == 0
    mixed = pipe.mix_layers(0, 1, [0, 0, 1])
    latent, left = pipe.project(mixed)
    assert 0 < left < 1
    # nothing near it comes nearer
    goal = mixed.coefficients
    best = (pipe.coefficients(latent) - goal).norm()
    for direction in torch.randn(20, 5, generator=torch.Generator().manual_seed(3)):
        assert (pipe.coefficients(latent + 0.05 * direction) - goal).norm() >= best - 1e-6
    # coefficients that a latent does give are found again
    disguised = pipe.wrap(None, own.field, "disguised", pipe.coefficients(own))
    latent, left = pipe.project(disguised)
    assert torch.allclose(latent, own.latent, atol=1e-3)
    assert left < 1e-4


def test_more_latent_dimensions_than_coefficients() -> None:
    """Then every mixture of layers has a latent, and the one nearest to the mean is taken."""
    spec = FieldSpec(width=8, hidden_layers=0, num_bases=3, latent_dim=20)
    model = StoredModel(MixtureField(spec, seed=0).eval(), 3 + torch.randn(4, 20), tuple("abcd"))
    pipe = MNIFPipeline(model)
    mixed = pipe.mix_layers("a", "b", [0, 1])
    latent, left = pipe.project(mixed)
    assert left < 1e-4
    assert torch.allclose(pipe.coefficients(latent), mixed.coefficients, atol=1e-4)
    assert float((latent - model.latents.mean(0)).norm()) < float(latent.norm())


def test_network_wise_models_mix_by_layers_too() -> None:
    spec = FieldSpec(width=8, hidden_layers=1, num_bases=6, latent_dim=2, coefficients="network-wise")
    pipe = MNIFPipeline(StoredModel(MixtureField(spec, seed=0).eval(), torch.randn(3, 2), ("a", "b", "c")))
    mixed = pipe.mix_layers("a", "b", [0, 1, 1])
    assert torch.allclose(mixed.field.weights[0], pipe.instance("a").field.weights[0], atol=1e-5)
    assert torch.allclose(mixed.field.weights[1], pipe.instance("b").field.weights[1], atol=1e-5)
    assert pipe.project(mixed)[1] > 0.01


def test_colours_with_a_latent_of_their_own_are_exchanged_exactly(tmp_path: Path) -> None:
    write_model(tiny_surface_model(color_latent=2), tmp_path / "model")
    pipe = MNIFPipeline.from_pretrained(tmp_path / "model")
    a, b = pipe.instance(0), pipe.instance(1)
    mixed = pipe.mix_shape_and_color(a, b)
    assert torch.equal(mixed.latent, torch.cat([a.latent[:3], b.latent[3:]]))
    assert torch.equal(mixed.distance(POINTS), a.distance(POINTS))
    assert (mixed.color(POINTS) - a.color(POINTS)).abs().mean() > 0.01
    patchwork = pipe.mix_layers(a, b, [0, 0, 1])
    again = pipe.mix_shape_and_color(patchwork, a)
    assert not again.has_latent
    torch.testing.assert_close(again.distance(POINTS), patchwork.distance(POINTS))
    assert same_network(pipe.mix_layers(again, b, [1, 1, 1]), b)
    by_layers = pipe.mix_shape_and_color(a, b, layers=1)
    assert not by_layers.has_latent
    assert torch.allclose(pipe.coefficients(by_layers)[:, 2:], pipe.coefficients(b)[:, 2:])


# --- averages, analogies, shape and colour ----------------------------------------------------------------


def test_averages(pipe: MNIFPipeline) -> None:
    assert torch.allclose(pipe.average([0, 1, 2]).latent, pipe.latents[:3].mean(0), atol=1e-6)
    weighted = pipe.average(["car_00", pipe.latents[1]], weights=[3, 1])
    assert torch.allclose(weighted.latent, 0.75 * pipe.latents[0] + 0.25 * pipe.latents[1], atol=1e-6)
    mixed = pipe.mix_layers(0, 1, [0, 0, 1])
    assert same_network(pipe.average([mixed, mixed]), mixed)


def test_analogies(pipe: MNIFPipeline) -> None:
    z = pipe.latents
    assert torch.allclose(pipe.analogy(0, minus=1, plus=2).latent, z[0] - z[1] + z[2], atol=1e-5)
    assert torch.allclose(pipe.analogy(0, 1, 2, amount=0.5).latent, z[0] + 0.5 * (z[2] - z[1]), atol=1e-5)
    assert torch.allclose(pipe.analogy(0, 1, 2, amount=0).latent, z[0], atol=1e-6)
    assert same_network(pipe.analogy(0, 1, 1), pipe.instance(0))


def test_shape_of_one_with_colour_of_another(pipe: MNIFPipeline) -> None:
    a, b = pipe.instance(0), pipe.instance(1)
    painted = pipe.mix_shape_and_color(a, b)
    assert painted.name == "repainted"
    for layer in range(LAYERS):
        source = b if layer == LAYERS - 1 else a
        assert torch.allclose(painted.field.weights[layer], source.field.weights[layer], atol=1e-4)
    two = pipe.mix_shape_and_color(a, b, layers=2)
    assert torch.allclose(two.field.weights[1], b.field.weights[1], atol=1e-4)
    for layers in (0, 3, -1):
        with pytest.raises(MNIFError, match="use 1 to 2"):
            pipe.mix_shape_and_color(a, b, layers)


@pytest.mark.parametrize(("make", "words"), [(tiny_voxel_model, "no colour"), (tiny_image_model, "all colour")])
def test_only_radiance_has_shape_and_colour(make: object, words: str) -> None:
    pipe = MNIFPipeline(make())  # type: ignore[operator]
    with pytest.raises(MNIFError, match=words):
        pipe.mix_shape_and_color(0, 1)
    mixed = pipe.mix_layers(0, 1, [0, 0, 1])
    assert type(mixed) is type(pipe.instance(0))
    assert mixed.picture(8).size == (8, 8)


# --- what is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda p: p.mix([], []), "nothing to mix"),
        (lambda p: p.average([]), "nothing to mix"),
        (lambda p: p.mix([0, 1], [1.0]), "do not fit 2 objects"),
        (lambda p: p.mix([0, 1], [0.5, 0.6]), "sum to 1.1"),
        (lambda p: p.mix([0, 1], [[1, 1, 0.5], [0, 0, 0]]), "sum to 0.5, 1 are no mixture"),
        (lambda p: p.mix([0, 1], [float("nan"), 1.0]), "no mixture"),
        (lambda p: p.analogy(0, 1, 2, amount=float("inf")), "no mixture"),
        (lambda p: p.mix_layers(0, 1, [0.5]), "1 shares do not fit networks of 3 layers"),
        (lambda p: p.average([0, 1], [1, -1]), "sum to 0"),
        (lambda p: p.average([0, 1], [1, 2, 3]), "do not fit 2 objects"),
        (lambda p: p.average(["car_99", 1]), "did you mean"),
        (lambda p: p.analogy(0, 1, torch.zeros(7)), "takes 5 numbers"),
    ],
)
def test_refusals(pipe: MNIFPipeline, call: object, words: str) -> None:
    with pytest.raises(MNIFError, match=words):
        call(pipe)  # type: ignore[operator]


def test_objects_of_another_model_are_refused(pipe: MNIFPipeline) -> None:
    stranger = MNIFPipeline(tiny_model(seed=5))  # of the same sizes, with other networks
    for item in (stranger.instance(0), stranger.mix_layers(0, 1, [0, 0, 1])):
        for call in (
            lambda x: pipe.average([0, x]),
            lambda x: pipe.interpolate(0, x),
            lambda x: pipe.mix_layers(x, 1, [0, 1, 1]),
            lambda x: pipe.project(x),
        ):
            with pytest.raises(MNIFError, match="another model"):
                call(item)
    small = MixtureField(FieldSpec(width=8, hidden_layers=0, num_bases=4, latent_dim=5), seed=0).eval()
    other = MNIFPipeline(StoredModel(small, torch.randn(2, 5), ("a", "b")))
    with pytest.raises(MNIFError, match="another model"):
        pipe.average([0, other.instance(0)])
    with pytest.raises(MNIFError, match=r"shape \[4, 2\] do not fit"):
        pipe.average([0, other.mix_layers("a", "b", [0, 1])])
    bare = NeuralRadiance(None, pipe.instance(0).field, "bare")
    with pytest.raises(MNIFError, match="neither a latent nor"):
        pipe.average([0, bare])


# --- cameras of one's own ---------------------------------------------------------------------------------


def test_views_from_any_camera(pipe: MNIFPipeline) -> None:
    item = pipe.instance(0)
    pose, square = orbit_pose(20, 45, item.camera["radius"]), Intrinsics.default(16, item.camera["focal_over_width"])
    assert item.view(pose, square).tobytes() == item.render(20, 45, 16).tobytes()
    wide = item.view(pose, Intrinsics.centred(24, 16, square.focal))
    assert wide.size == (24, 16)
    assert np.array_equal(np.asarray(wide)[:, 4:20], np.asarray(item.render(20, 45, 16)))
    with pytest.raises(MNIFError, match="no pixels"):
        item.view(pose, Intrinsics.centred(0, 16, 10.0))
    shape = MNIFPipeline(tiny_voxel_model()).instance(0)
    assert shape.view(pose, square).tobytes() == shape.render(20, 45, 16).tobytes()
    assert not hasattr(MNIFPipeline(tiny_image_model()).instance(0), "view")


def test_the_benchmark_runs(trained: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    import edit

    results = edit.main(edit.Config(trained, pairs=2, voxels=12, resolution=8, output=tmp_path / "edit.json"))
    rows = results["mixing"]
    assert rows["A itself"]["iou_with_a"] == rows["B itself"]["iou_with_b"] == rows["composite"]["iou_with_a"] == 1
    assert rows["B itself"]["paint_error_to_b"] == 0
    assert len(rows) == 5 + LAYERS - 1
    assert "last 1 of 3 layers from B" in capsys.readouterr().out
    assert (tmp_path / "edit.json").is_file()
