"""Network families and modulations: slow re-statements, their start, derivatives, files, and what they refuse."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from tiny_model import tiny_image_model
from torch import Tensor

from mnif_nerf.diagnosis.bases import diagnose_bases
from mnif_nerf.errors import MNIFError
from mnif_nerf.fields import CompactField, FieldSpec, ModulatedField, build_field, kernel
from mnif_nerf.fields.families import FAMILIES, forward_reference
from mnif_nerf.fields.losses import PointLoss
from mnif_nerf.fields.point_loss import losses_and_gradients, point_losses
from mnif_nerf.fields.spec import MODULATIONS
from mnif_nerf.latents.meta import InnerRates, LossObjective, MetaConfig, PointObjective, adapt
from mnif_nerf.pipelines.generation import MNIFPipeline
from mnif_nerf.rendering.batch import PointBatch

SPEC = FieldSpec(3, 2, 8, 2, 4, 5, w0=6.0, head="logit", rank=2, fourier_features=5)
CHOICES = list(itertools.product(FAMILIES, MODULATIONS))
every_choice = pytest.mark.parametrize(("family", "modulation"), CHOICES)


def make(family: str, modulation: str, **changes: object) -> ModulatedField:
    spec = dataclasses.replace(SPEC, family=family, modulation=modulation, **changes)  # type: ignore[arg-type]
    return build_field(spec, seed=3)


def reference_network(field: ModulatedField, latent: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Weights and biases of one latent, by the definition of the modulation, without the family's gain."""
    layers, z, at, spec = [], latent, 0, field.spec
    for number, (out, fan_in) in enumerate(spec.learned_shapes):
        cut = out * fan_in
        if spec.modulation == "mixture":
            alpha = field.coefficients(z[None])[0, :, number]
            flat = torch.stack([alpha[m] * field.bases[number][m] for m in range(spec.num_bases)]).sum(0)
        else:
            flat = field.shared[number]
        weight, bias = flat[:cut].view(out, fan_in), flat[cut:]
        if spec.modulation == "shift" and number < len(spec.learned_shapes) - 1:
            gain = field.gains[number]
            bias = bias + 10.0 / gain * (field.projection.weight[at : at + out] @ z)
            at += out
        if spec.modulation == "low-rank":
            u, v = torch.empty(out, spec.rank).to(z), field.factors[number].clone()
            for row in range(out):
                u[row] = 10.0 * (field.projection.weight[at : at + spec.rank] @ z)
                at += spec.rank
            for row in range(fan_in + 1):
                v[row] += 10.0 / math.sqrt(spec.rank) * (field.projection.weight[at : at + spec.rank] @ z)
                at += spec.rank
            scale = 2.0 / (1.0 + torch.exp(-(u @ v.T)))
            weight, bias = weight * scale[:, :-1], bias * scale[:, -1]
        layers.append((weight, bias))
    return layers


def reference(field: ModulatedField, latent: Tensor, points: Tensor) -> Tensor:
    """Values `[N, out]` at points `[N, in]` by the definitions, one layer at a time."""
    spec, hidden = field.spec, points
    layers = reference_network(field, latent)
    if spec.family == "fourier-relu":
        directions = field.first_layer[: SPEC.fourier_features * spec.in_features].view(-1, spec.in_features)
        hidden = torch.cat([torch.sin(points @ directions.T), torch.cos(points @ directions.T)], dim=1)
    for number, (weight, bias) in enumerate(layers):
        hidden = hidden @ weight.T + bias
        if number == len(layers) - 1:
            return torch.sin(field.gains[-1] * hidden) if spec.final_activation == "sine" else hidden
        if spec.family == "siren":
            hidden = torch.sin(spec.w0 * hidden)
        elif spec.family == "finer":
            hidden = torch.sin(spec.w0 * (hidden.abs() + 1) * hidden)
        else:
            hidden = torch.relu(3.0 * hidden)
    raise AssertionError


@every_choice
@pytest.mark.parametrize("final", ["linear", "sine"])
def test_fields_are_what_their_definitions_say_and_collapse(family, modulation, final, tmp_path):
    field = make(family, modulation, final_activation=final).double()
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 5, generator=generator, dtype=torch.float64)
    points = 1.2 - 2.4 * torch.rand(2, 30, 3, generator=generator, dtype=torch.float64)
    for row in range(2):
        expected = reference(field, latents[row], points[row])
        torch.testing.assert_close(field(latents, points)[row], expected, atol=1e-5, rtol=1e-5)
        small = field.collapse(latents[row])
        torch.testing.assert_close(small(points[row]), field(latents, points)[row], atol=1e-12, rtol=1e-12)
        again = CompactField.load(small.float().save(tmp_path / "field.safetensors"))
        assert (again.form, again.head) == (small.form, "logit")
        assert torch.equal(again(points[row].float()), small(points[row].float()))


@every_choice
def test_a_saved_field_is_the_same_field(family, modulation):
    field = make(family, modulation)
    again = build_field(FieldSpec.from_dict(field.spec.to_dict()), seed=8)
    again.load_state_dict(field.state_dict())
    latents, points = torch.randn(2, 5), torch.rand(2, 3, 9)
    assert torch.equal(field.evaluate(latents, points), again.evaluate(latents, points))
    assert ("first_layer" in field.state_dict()) == (family == "fourier-relu")


@every_choice
def test_parameter_groups_hold_every_parameter_once(family, modulation):
    field = make(family, modulation)
    groups = field.parameter_groups()
    assert tuple(groups) == ("fields", "projection")
    assert all(groups.values())
    found = [id(parameter) for group in groups.values() for parameter in group]
    assert sorted(found) == sorted(map(id, field.parameters()))


@every_choice
def test_a_zero_latent_starts_like_one_network_of_the_family(family, modulation):
    """The spread of the initial values hangs neither on the modulation nor on the number of bases."""
    points = 2 * torch.rand(1, 1000, 3, generator=torch.Generator().manual_seed(0)) - 1

    def spread(**changes: object) -> float:
        shape = {"width": 32, "w0": 30.0, "fourier_features": 0, **changes}
        spec = dataclasses.replace(SPEC, family=family, **shape)  # type: ignore[arg-type]
        with torch.no_grad():
            return sum(float(build_field(spec, seed)(torch.zeros(1, 5), points).std(dim=1).mean()) for seed in range(6))

    assert spread(modulation=modulation, num_bases=64) == pytest.approx(spread(num_bases=1), rel=0.35)


@every_choice
def test_meta_learning_differentiates_through_every_choice(family, modulation):
    field = make(family, modulation).double()
    generator = torch.Generator().manual_seed(0)
    points = 2 * torch.rand(2, 3, 20, generator=generator, dtype=torch.float64) - 1
    targets = 2 * torch.rand(2, 2, 20, generator=generator, dtype=torch.float64).round() - 1
    batch = PointBatch(torch.arange(2), points, targets, None)
    objective, rates = PointObjective(field, batch), InnerRates(5).double()

    def plain(latents: Tensor) -> Tensor:
        values = torch.stack([reference(field, latents[row], points[row].T).T for row in range(2)])
        each = torch.nn.functional.binary_cross_entropy_with_logits(values, 0.5 * targets + 0.5, reduction="none")
        return each.mean(dim=(1, 2))

    outer = []
    for each in (objective, LossObjective(plain)):
        codes = adapt(each, 2, rates(), MetaConfig(inner_lr=20.0), create_graph=True)
        parameters = [*field.parameters(), *rates.parameters()]
        outer.append(torch.autograd.grad(each.losses(codes).sum(), parameters, allow_unused=True))
    for one, other in zip(*outer):
        if one is not None or other is not None:
            assert (one - other).norm() <= 1e-4 * other.norm() + 1e-10
    assert torch.isfinite(adapt(objective, 2, rates(), MetaConfig())).all()


@pytest.mark.parametrize("family", list(FAMILIES))
def test_gradients_of_points_targets_and_weights_are_not_lost(family):
    field = make(family, "mixture").double()
    generator = torch.Generator().manual_seed(0)
    points, targets, weights = (
        torch.rand(*shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in ((2, 3, 9), (2, 2, 9), (2, 9))
    )
    flat = field.flat_weights(torch.randn(2, 5, dtype=torch.float64))
    loss = PointLoss("mse", targets, weights)

    def expected() -> Tensor:
        values = forward_reference(field.form, flat, points)
        return (weights.unsqueeze(1) * (values - targets).square()).mean(dim=(1, 2))

    wanted = torch.autograd.grad(expected().sum(), (points, targets, weights))
    for losses in (
        losses_and_gradients(field.form, flat, points, loss)[0],
        point_losses(field.form, flat, points, loss),
    ):
        torch.testing.assert_close(torch.autograd.grad(losses.sum(), (points, targets, weights)), wanted)


def test_the_kernel_runs_sirens_of_every_modulation_and_no_other_family():
    if not kernel.available():
        pytest.skip("the kernel was not built")
    for family, modulation in CHOICES:
        field = make(family, modulation)
        flat = field.flat_weights(torch.randn(2, 5))
        assert kernel.usable(field.form, flat, torch.rand(2, 3, 9)) == (family == "siren")


def test_specifications_of_older_versions_load_and_bad_ones_are_named():
    stored = FieldSpec().to_dict()
    for key in ("family", "modulation", "rank", "fourier_features"):
        del stored[key]
    assert FieldSpec.from_dict(stored) == FieldSpec()
    for changes, match in (
        ({"family": "wavelets"}, "siren, finer, fourier-relu"),
        ({"modulation": "attention"}, "mixture, shift, low-rank"),
        ({"rank": 0}, "`rank`"),
        ({"fourier_features": -1}, "`fourier_features`"),
        ({"modulation": "shift", "family": "fourier-relu", "hidden_layers": 0}, "no learned hidden layer"),
    ):
        with pytest.raises(MNIFError, match=match):
            dataclasses.replace(SPEC, **changes)
    with pytest.raises(MNIFError, match="family 'wavelets'"):
        CompactField([torch.zeros(2, 3)], [torch.zeros(2)], family="wavelets")


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "siren"])
def test_onnx_export_equals_torch(family, tmp_path):
    runtime = pytest.importorskip("onnxruntime", reason="needs the onnx extra")
    small = make(family, "low-rank").collapse(torch.randn(5))
    points = torch.rand(33, 3) - 0.5
    session = runtime.InferenceSession(str(small.to_onnx(tmp_path / "a.onnx")), providers=["CPUExecutionProvider"])
    (raw,) = session.run(None, {"points": points.numpy()})
    torch.testing.assert_close(torch.from_numpy(raw), small(points), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("family", "modulation"), [("finer", "low-rank"), ("fourier-relu", "mixture"), ("siren", "shift")]
)
def test_model_folders_and_object_files_hold_the_choice(family, modulation, tmp_path):
    pipe = MNIFPipeline(tiny_image_model(family=family, modulation=modulation))
    pipe.save_pretrained(tmp_path / "model")
    again = MNIFPipeline.from_pretrained(tmp_path / "model", device="cpu")
    assert again.model.field.spec == pipe.model.field.spec
    for item in (again.instance(0), type(pipe.instance(0)).load(pipe.instance(0).save(tmp_path / "a.safetensors"))):
        assert item.field.form.family == family
        assert item.image(8).tobytes() == pipe.instance(0).image(8).tobytes()


def test_what_only_a_mixture_can_do_is_said():
    mixture, other = (MNIFPipeline(tiny_image_model(modulation=name)) for name in ("mixture", "shift"))
    halves = mixture.mix_layers(0, 1, [0.0, 1.0, 1.0])
    for wrong, match in (
        (lambda: other.mix_layers(0, 1, [0.0, 1.0, 1.0]), "mixing layer by layer needs a mixture of basis networks"),
        (lambda: other.coefficients(0), "`modulation` is 'shift'"),
        (lambda: other.project(halves), "needs a mixture"),
        (lambda: diagnose_bases(other), "a diagnosis of bases needs a mixture"),
    ):
        with pytest.raises(MNIFError, match=match):
            wrong()
    assert other.average([0, 1]).has_latent  # the same shares in every layer: the latents' average
    assert other.interpolate(0, 1, num=3)
    fourier = MNIFPipeline(tiny_image_model(family="fourier-relu"))
    assert not fourier.mix_layers(0, 1, [0.0, 1.0]).has_latent  # its first layer is nobody's


@every_choice
def test_the_parametrisation_changes_no_field_at_its_start(family, modulation):
    """Only what learning rates do: the same seed draws the same networks, whatever they are measured in."""
    plain, scaled = (make(family, modulation, parametrization=name) for name in ("plain", "scaled"))
    generator = torch.Generator().manual_seed(0)  # FINER magnifies what float32 rounds, at some points past any bound
    latents, points = torch.randn(2, 5, generator=generator), torch.rand(2, 3, 9, generator=generator)
    for ours, theirs in zip(scaled.weights(latents), plain.weights(latents)):
        torch.testing.assert_close(ours, theirs, rtol=0.0, atol=2e-6 * float(theirs.detach().abs().max()))
    torch.testing.assert_close(scaled.evaluate(latents, points), plain.evaluate(latents, points), rtol=1e-4, atol=1e-5)
    assert FieldSpec.from_dict({"width": 8}).parametrization == "plain"  # models of older versions


def first_step(parametrization: str, group: str, width: int, bases: int, dim: int) -> float:
    """How far one Adam step of a group of parameters moves the outputs, root mean square, in units of the rate."""
    spec = FieldSpec(3, 1, width, 2, bases, dim, w0=20.0, head="logit", parametrization=parametrization)
    field, generator = build_field(spec, seed=1), torch.Generator().manual_seed(2)
    latents = 0.05 * torch.randn(4, dim, generator=generator)
    points = 2 * torch.rand(4, 3, 200, generator=generator) - 1
    before, rate = field.evaluate(latents, points), 1e-6
    targets = torch.sign(points[:, :1] * points[:, 1:2])
    (before - targets).square().mean().backward()
    torch.optim.Adam(field.parameter_groups()[group], lr=rate, eps=1e-15).step()
    with torch.no_grad():
        return float((field.evaluate(latents, points) - before).square().mean().sqrt()) / rate


@pytest.mark.parametrize("group", ["fields", "projection"])
def test_first_steps_do_not_depend_on_size_where_parameters_are_scaled(group):
    sizes = [(16, 8, 8), (128, 8, 8), (16, 256, 8), (16, 8, 256), (64, 64, 64)]
    spread = {}
    for name in ("plain", "scaled", "centred"):
        moves = [first_step(name, group, *size) for size in sizes]
        spread[name] = max(moves) / min(moves)
    assert max(spread["scaled"], spread["centred"]) < 4.0 < 8.0 < spread["plain"]


@pytest.mark.parametrize("bases", [4, 64])
def test_a_centred_mixture_starts_as_its_mean_network(bases):
    """The zero latent has the first basis alone, spread as one network is; latents of unit variance add as much."""
    spec = FieldSpec(3, 4, 32, 2, bases, 8, parametrization="centred")
    field, single = (
        build_field(spec, seed=3),
        build_field(FieldSpec(3, 4, 32, 2, 1, 8, parametrization="scaled"), seed=3),
    )
    latents = torch.randn(64, 8, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        mean, some = field.weights(torch.zeros(1, 8)), field.weights(latents)
        theirs_of = single.weights(torch.zeros(1, 8))
    for ours, theirs, changed in zip(mean, theirs_of, some):
        assert float(ours.std() / theirs.std()) == pytest.approx(1.0, abs=0.35)
        assert 0.5 < float((changed - ours).std() / ours.std()) < 1.6
    assert torch.equal(field.coefficients(torch.zeros(1, 8))[0, :, 0], torch.eye(bases, 1)[:, 0])


@pytest.mark.parametrize("parametrization", ["plain", "scaled", "centred"])
@pytest.mark.parametrize(("coefficients", "color_latent"), [("layer-wise", 0), ("layer-wise", 3), ("network-wise", 0)])
def test_the_projection_as_a_matrix_says_the_same_coefficients(parametrization, coefficients, color_latent):
    spec = FieldSpec(
        width=8, hidden_layers=1, num_bases=5, latent_dim=7, coefficients=coefficients, color_latent=color_latent,
        parametrization=parametrization,
    )  # fmt: skip
    field, latents = build_field(spec, seed=5), torch.randn(6, 7, generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        weight, bias = field.affine_projection
        expected = field.coefficients(latents)
        said = (latents @ weight.T + bias).view(6, 5, -1)
    torch.testing.assert_close(said.expand_as(expected), expected)


def test_deviations_of_a_centred_mixture_do_not_move_together():
    """One Adam step towards four objects: bases around one coefficient take one step, deviations their own."""
    together = {}
    for name in ("scaled", "centred"):
        field = build_field(FieldSpec(3, 1, 16, 1, 12, 8, w0=20.0, parametrization=name), seed=7)
        generator = torch.Generator().manual_seed(8)
        latents = 0.1 * torch.randn(4, 8, generator=generator)
        points, targets = (
            2 * torch.rand(4, 3, 100, generator=generator) - 1,
            torch.randn(4, 1, 100, generator=generator),
        )
        before = field.bases[1].detach().clone()
        (field.evaluate(latents, points) - targets).square().mean().backward()
        torch.optim.Adam(field.parameters(), lr=1e-3, eps=1e-15).step()
        moves = (field.bases[1].detach() - before)[1:]  # without the mean network
        together[name] = float(torch.corrcoef(moves).fill_diagonal_(0.0).abs().mean())
    assert together["centred"] < 0.4 < 0.8 < together["scaled"]
