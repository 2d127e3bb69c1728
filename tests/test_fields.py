"""The mixture against slow, obvious re-statements; initialisation; collapse; parameter counts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from mnif_nerf.errors import MNIFError
from mnif_nerf.fields import CompactField, FieldSpec, MixtureField


def reference_forward(field: MixtureField, latent: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """The paper's definition, one instance, one basis and one layer at a time: broadcast, multiply, sum."""
    spec = field.spec
    alpha = field.coefficients(latent[None])[0]
    hidden = points
    for layer, (out, fan_in) in enumerate(spec.shapes):
        weight, bias = points.new_zeros(out, fan_in), points.new_zeros(out)
        for basis in range(spec.num_bases):
            row = field.bases[layer][basis]
            weight = weight + alpha[basis, layer] * row[: out * fan_in].view(out, fan_in)
            bias = bias + alpha[basis, layer] * row[out * fan_in :]
        hidden = hidden @ weight.T + bias
        if layer < len(spec.shapes) - 1 or spec.final_activation == "sine":
            hidden = torch.sin(spec.w0 * hidden)
    return hidden


@settings(max_examples=15, deadline=None)
@given(
    bases=st.integers(1, 5),
    hidden=st.integers(0, 3),
    latent=st.integers(1, 6),
    batch=st.integers(1, 4),
    coefficients=st.sampled_from(["layer-wise", "network-wise"]),
    final=st.sampled_from(["linear", "sine"]),
    seed=st.integers(0, 100),
)
def test_mixture_equals_broadcast_and_sum(bases, hidden, latent, batch, coefficients, final, seed):
    spec = FieldSpec(3, 4, 8, hidden, bases, latent, 5.0, coefficients, "corrected", final)
    field = MixtureField(spec, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(batch, latent, generator=generator)
    points = torch.rand(batch, 7, 3, generator=generator) - 0.5
    single = field(latents, points)
    field = field.double()
    got = field(latents.double(), points.double())
    for row in range(batch):
        expected = reference_forward(field, latents[row].double(), points[row].double())
        torch.testing.assert_close(got[row], expected, atol=1e-9, rtol=1e-9)
        # float32, and the compiled kernel: a few sine layers multiply rounding errors by up to w0 each.
        torch.testing.assert_close(single[row].double(), expected, atol=1e-3, rtol=1e-3)


def test_parameter_counts_of_the_papers_srn_shape():
    field = MixtureField(FieldSpec())
    assert sum(p.numel() for p in field.parameters()) == 4_590_080
    assert field.spec.parameters_per_instance == 17_156
    collapsed = field.collapse(torch.zeros(128))
    assert sum(p.numel() for p in collapsed.parameters()) == 17_156


def initial_spread(num_bases: int, init: str) -> float:
    torch.manual_seed(0)
    spreads = []
    for seed in range(4):
        field = MixtureField(FieldSpec(num_bases=num_bases, init=init, latent_dim=16), seed=seed)
        points = torch.rand(1, 2000, 3) - 0.5
        spreads.append(field(torch.zeros(1, 16), points).std(dim=1).mean().item())
    return sum(spreads) / len(spreads)


def test_initial_spread_does_not_depend_on_the_number_of_bases():
    single = initial_spread(1, "corrected")
    for num_bases in (8, 64, 256):
        assert initial_spread(num_bases, "corrected") == pytest.approx(single, rel=0.2)


def test_the_authors_initialisation_collapses_as_documented():
    assert initial_spread(64, "authors") < 1e-3 * initial_spread(1, "authors")


def test_seed_repeats_the_initial_field():
    spec = FieldSpec(num_bases=3, latent_dim=4, width=8)
    first, again, other = (MixtureField(spec, seed=s) for s in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters()))
    assert not torch.equal(first.bases[0], other.bases[0])


@pytest.mark.parametrize("coefficients", ["layer-wise", "network-wise"])
def test_collapse_equals_the_mixture(coefficients, tmp_path):
    field = MixtureField(FieldSpec(num_bases=7, latent_dim=5, width=16, coefficients=coefficients), seed=0)
    latent, points = torch.randn(5), torch.rand(100, 3) - 0.5
    small = field.collapse(latent)
    torch.testing.assert_close(small(points), field(latent[None], points[None])[0], atol=1e-5, rtol=1e-5)
    color, density = small.radiance(points)
    assert color.min() >= 0
    assert color.max() <= 1
    assert density.min() >= 0
    assert torch.equal(small.density(points), density)
    again = CompactField.load(small.save(tmp_path / "car.safetensors"))
    assert torch.equal(again(points), small(points))


def test_onnx_export_equals_torch(tmp_path):
    runtime = pytest.importorskip("onnxruntime", reason="needs the onnx extra")
    small = MixtureField(FieldSpec(num_bases=3, latent_dim=4, width=16), seed=0).collapse(torch.randn(4))
    path = small.train().to_onnx(tmp_path / "car.onnx")
    assert small.training  # the export works on a copy: device and mode of the field stay
    points = torch.rand(33, 3) - 0.5
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (raw,) = session.run(None, {"points": points.numpy()})
    torch.testing.assert_close(torch.from_numpy(raw), small(points), atol=1e-4, rtol=1e-4)
    # The graph is the layers, without the flat weights by which the library evaluates many networks at once.
    names = {node.op_type for node in pytest.importorskip("onnx").load(path).graph.node}
    assert names <= {"Constant", "MatMul", "Mul", "Add", "Sin", "Transpose", "Unsqueeze", "Gather"}


def test_gradients_match_finite_differences():
    field = MixtureField(FieldSpec(3, 4, 4, 1, 3, 2, w0=3.0), seed=0).double()
    points = torch.rand(2, 3, 5, dtype=torch.float64) - 0.5
    latents = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: field.evaluate(z, points), (latents,))


def test_a_part_of_the_latent_makes_the_colours_and_nothing_else():
    spec = FieldSpec(width=8, hidden_layers=2, num_bases=6, latent_dim=7, color_latent=3, parametrization="scaled")
    field = MixtureField(spec, seed=0).double()
    latents, points = torch.randn(2, 7, dtype=torch.float64), torch.rand(2, 3, 40, dtype=torch.float64)
    colors, shape = latents.clone(), latents.clone()
    colors[:, 4:] += 1.0
    shape[:, :4] += 1.0
    first, recolored, reshaped = (field.evaluate(codes, points) for codes in (latents, colors, shape))
    assert torch.equal(first[:, 3], recolored[:, 3])
    assert (first[:, :3] - recolored[:, :3]).abs().mean() > 1e-3
    assert (first - reshaped).abs().mean(dim=(0, 2)).min() > 1e-3
    small = field.collapse(latents[0])
    torch.testing.assert_close(small(points[0].T), first[0].T)
    again = field.collapse_coefficients(field.coefficients(latents)[0])
    torch.testing.assert_close(again(points[0].T), first[0].T)
    optimizer = torch.optim.Adam(field.parameters(), lr=1e-2)
    for _ in range(3):
        field.evaluate(latents, points).square().mean().backward()
        optimizer.step()
    assert torch.equal(field.evaluate(latents, points)[:, 3], field.evaluate(colors, points)[:, 3])


def test_bad_specifications_are_named():
    for values, word in (
        ({"num_bases": 0}, "num_bases"),
        ({"w0": 0.0}, "w0"),
        ({"coefficients": "point-wise"}, "point-wise"),
        ({"hidden_layers": -1}, "hidden_layers"),
        ({"latent_dim": 8, "color_latent": 8}, "color_latent"),
        ({"color_latent": 8, "out_features": 1}, "color_latent"),
        ({"color_latent": 8, "modulation": "low-rank"}, "color_latent"),
        ({"color_latent": 8, "coefficients": "network-wise"}, "color_latent"),
    ):
        with pytest.raises(MNIFError, match=word):
            FieldSpec(**values)
    with pytest.raises(MNIFError, match="another version"):
        FieldSpec.from_dict({"depth": 3})
    with pytest.raises(MNIFError, match="takes 5 numbers"):
        MixtureField(FieldSpec(num_bases=2, latent_dim=5, width=8)).collapse(torch.zeros(4))


def test_unreadable_collapsed_fields_are_named(tmp_path):
    with pytest.raises(MNIFError, match="no such file"):
        CompactField.load(tmp_path / "absent.safetensors")
    (tmp_path / "noise.safetensors").write_bytes(b"not a field")
    with pytest.raises(MNIFError, match="not a readable"):
        CompactField.load(tmp_path / "noise.safetensors")
    save_file({"a": torch.zeros(1)}, str(tmp_path / "other.safetensors"))
    with pytest.raises(MNIFError, match="does not hold"):
        CompactField.load(tmp_path / "other.safetensors")
