"""The benchmark of layer families: its networks against slow, obvious re-statements, its shapes, and a small run."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import families
import family_fields
from family_fields import FAMILIES, FamilyField, family_spec, lattice_weights
from test_benchmarks import LocalWorker

from mnif_nerf.errors import MNIFError
from mnif_nerf.fields import FieldSpec, MixtureField, kernel
from mnif_nerf.latents.meta import LossObjective

SPEC = FieldSpec(out_features=2, width=8, hidden_layers=1, num_bases=4, latent_dim=5, w0=6.0, head="logit")


@pytest.fixture(autouse=True)
def settings_of_the_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(kernel, "_threads", kernel.num_threads())
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def interpolated(grid: Tensor, points: Tensor) -> Tensor:
    """Torch's own multilinear interpolation: values `[N]` of a lattice over [-1, 1]^d at points `[d, N]`."""
    at = points.T.flip(1).view(1, -1, *([1] * (grid.ndim - 1)), grid.ndim)
    return F.grid_sample(grid[None, None], at, align_corners=True, padding_mode="border").flatten()


def reference(field: FamilyField, latent: Tensor, points: Tensor) -> Tensor:
    """The definition, one basis, layer and neuron at a time: values `[N, out]` at points `[N, in]`."""
    spec, dims = field.spec, field.spec.in_features
    alpha = field.coefficients(latent[None])[0]
    last, hidden = len(spec.shapes) - 1, points
    if spec.family == "fourier-relu":
        phases = points @ field.frequencies.to(points).T
        hidden = torch.cat([torch.sin(phases), torch.cos(phases)], dim=1)
    for layer, (out, fan_in) in enumerate(spec.shapes):
        row = torch.zeros_like(field.bases[layer][0])
        for basis in range(spec.num_bases):
            row = row + alpha[basis, layer] * field.bases[layer][basis]
        weight, bias = row[: out * fan_in].view(out, fan_in), row[out * fan_in :]
        if layer == 0 and spec.family == "grid-siren":
            size = round((fan_in - dims) ** (1 / dims))
            reach = 0.5 if spec.head == "radiance" else 1.0
            grids = [interpolated(cells.view(*[size] * dims), points.T / reach) for cells in weight[:, dims:]]
            hidden = points @ weight[:, :dims].T + torch.stack(grids, dim=1) + bias
        else:
            hidden = hidden @ weight.T + bias
        if layer < last and spec.family == "fourier-relu":
            hidden = torch.relu(spec.w0 * hidden)
        elif layer < last or spec.final_activation == "sine":
            hidden = torch.sin(spec.w0 * hidden)
    return hidden


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("dims", "head"), [(3, "radiance"), (2, "signed")])
def test_a_mixture_is_what_its_definition_says(family: str, dims: int, head: str) -> None:
    final = "sine" if head == "signed" else "linear"
    spec = dataclasses.replace(SPEC, in_features=dims, out_features=4, head=head, final_activation=final)
    field = FamilyField(family_spec(spec, family), seed=0).double()
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 5, generator=generator, dtype=torch.float64)
    points = 1.2 - 2.4 * torch.rand(2, 30, dims, generator=generator, dtype=torch.float64)
    for row in range(2):
        expected = reference(field, latents[row], points[row])
        torch.testing.assert_close(field(latents, points)[row], expected, atol=1e-9, rtol=1e-9)
        small = field.collapse(latents[row])
        torch.testing.assert_close(small(points[row]), expected, atol=1e-9, rtol=1e-9)
        if head == "radiance":
            torch.testing.assert_close(small.density(points[row]), field.radiance(latents, points)[1][row])


def test_siren_is_the_packages_own_and_the_wider_one_as_large_as_the_grid() -> None:
    ours, theirs = FamilyField(family_spec(SPEC, "siren"), seed=3), MixtureField(SPEC, seed=3)
    latents, points = torch.randn(2, 5), torch.rand(2, 3, 40)
    assert torch.equal(ours.evaluate(latents, points), theirs.evaluate(latents, points))
    wide, grid = (family_spec(SPEC, name).parameters_per_instance for name in ("siren, wider", "grid-siren"))
    assert grid <= wide < 1.15 * grid
    assert grid == SPEC.parameters_per_instance + 64 * SPEC.width


@pytest.mark.parametrize("family", FAMILIES)
def test_initial_spread_does_not_depend_on_the_number_of_bases(family: str) -> None:
    def spread(bases: int) -> float:
        points = 2 * torch.rand(1, 1000, 3, generator=torch.Generator().manual_seed(0)) - 1
        spec = family_spec(dataclasses.replace(SPEC, width=32, hidden_layers=2, num_bases=bases, w0=30.0), family)
        with torch.no_grad():
            values = [FamilyField(spec, seed)(torch.zeros(1, 5), points) for seed in range(4)]
        return sum(float(value.std(dim=1).mean()) * spec.w0 for value in values) / 4

    single = spread(1)
    assert 0.2 < single < 3
    assert spread(64) == pytest.approx(single, rel=0.35)


def test_a_lattice_starts_with_little_to_say_and_coordinates_as_without() -> None:
    spec = family_spec(dataclasses.replace(SPEC, width=64, w0=30.0, num_bases=16), "grid-siren")
    mixed = FamilyField(spec, 0).mix(torch.zeros(1, 5))
    weight, bias = mixed[0][0][0].detach(), mixed[1][0][0].detach()
    assert float(weight[:, 3:].std()) == pytest.approx(family_fields.GRID_SPREAD, rel=0.1)
    assert float(weight[:, :3].std()) == pytest.approx(30 / 3 / math.sqrt(3), rel=0.2)
    assert float(bias.std()) == pytest.approx(30 / math.sqrt(3) / math.sqrt(3), rel=0.3)


@pytest.mark.parametrize("dims", [2, 3])
def test_lattice_weights_interpolate(dims: int) -> None:
    points = 2.6 * torch.rand(dims, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1.3
    weights = lattice_weights(points)
    assert weights.shape == (64, 200)
    grid = torch.randn(*[round(64 ** (1 / dims))] * dims, dtype=torch.float64)
    torch.testing.assert_close(grid.flatten() @ weights, interpolated(grid, points))


def test_losses_of_rectified_networks_are_those_of_sines(tmp_path: Path) -> None:
    settings = families.chosen("voxel", quick=True)
    data = families.make("voxel", settings, tmp_path, seed=0)
    spec = family_spec(settings.field, "siren")
    task = families.FamilyGridTask("voxel", dataclasses.replace(settings, field=spec), data, "cpu", 0)
    batch = task.samplers["train"].draw(0)
    codes = torch.randn(len(batch.instances), 3)
    plain = LossObjective(lambda latents: task._losses(batch, latents))
    torch.testing.assert_close(plain.losses(codes), task._objective(batch).losses(codes), rtol=1e-4, atol=1e-6)


def test_shapes_are_diverse_and_repeat() -> None:
    shapes = [families.diverse_shape((0, 0, index), 16) for index in range(40)]
    assert (shapes[3] == families.diverse_shape((0, 0, 3), 16)).all()
    shares = [shape.mean() for shape in shapes]
    assert min(shares) > 0
    assert max(shares) < 0.6
    assert max(shares) > 5 * min(shares)


def test_families_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(families, "Worker", LocalWorker)
    monkeypatch.setattr(families, "QUERIES", 100)
    output = tmp_path / "out.json"
    config = families.Config("diverse", 0.02, factors=(0.5, 1.0), small=True, cache=tmp_path, output=output)
    found = families.main(config)["diverse"]
    assert tuple(found) == FAMILIES
    assert [tried["factor"] for tried in found["fourier-relu"]["tuning"]] == [0.5, 1.0]
    for result in found.values():
        assert result["steps"]["steps"] == found["siren"]["time"]["steps"]
        assert all(math.isfinite(result["time"][split]) for split in ("train", "unseen"))
    assert "| diverse | siren, wider | IoU |" in capsys.readouterr().out
    assert json.loads(output.read_text())["benchmark"] == "Layer families"
    with pytest.raises(MNIFError, match="choose one of diverse, voxel, image, radiance, or all"):
        families.main(dataclasses.replace(config, data="video"))
    with pytest.raises(MNIFError, match="must be positive"):
        families.main(dataclasses.replace(config, seconds=0.0))
    with pytest.raises(MNIFError, match="are of siren, siren, wider, grid-siren, fourier-relu"):
        families.main(dataclasses.replace(config, families=("wavelets",)))


@pytest.mark.parametrize("name", ["image", "radiance"])
def test_other_modalities_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "image":
        pytest.importorskip("sklearn")
    monkeypatch.setattr(families, "QUERIES", 100)
    data = families.make(name, families.chosen(name, quick=True), tmp_path, seed=0)
    for family in ("grid-siren", "fourier-relu"):
        found = families.Run(name, family, 1.0, str(data), 1, "cpu", 0, True).train(seconds=0.0, steps=2)
        assert found["steps"] == 2
        assert all(math.isfinite(found[split]) for split in ("train", "unseen"))


def test_training_lowers_the_loss_of_every_family(tmp_path: Path) -> None:
    data = families.make("diverse", families.chosen("diverse", quick=True), tmp_path, seed=0)
    for family in FAMILIES:
        run = families.Run("diverse", family, 0.5, str(data), 1, "cpu", 0, True)
        losses = []
        for step in range(100):
            with torch.no_grad():
                instances, objective = run.task.draw(step)
                losses.append(float(objective.losses(run.latents(instances)).mean()))
            run.step(0.0)
        assert sum(losses[-20:]) < 0.8 * sum(losses[:20]), family
