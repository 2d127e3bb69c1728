"""The model folder and the generation pipeline, on a tiny untrained model (no nerfstudio, no network)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from safetensors.torch import save_file

from mnif_nerf import machine
from mnif_nerf.errors import MNIFError
from mnif_nerf.pipelines.generation import MNIFPipeline, NeuralObject, NeuralRadiance

# --- the pipeline -----------------------------------------------------------------------------------------


def test_sampling_repeats_by_seed_and_does_not_depend_on_the_number(pipe: MNIFPipeline) -> None:
    three, one = pipe(num_samples=3, seed=7), pipe(num_samples=1, seed=7)
    assert torch.allclose(three[0].latent, one[0].latent, atol=1e-5)
    assert not torch.allclose(pipe(seed=8)[0].latent, one[0].latent, atol=1e-3)
    assert [item.name for item in three] == ["sample000", "sample001", "sample002"]


@pytest.mark.parametrize(("sampler", "steps"), [("ddim", 5), ("ddpm", 5), ("gaussian", None)])
def test_other_samplers(pipe: MNIFPipeline, sampler: str, steps: int | None) -> None:
    assert pipe(2, sampler=sampler, steps=steps)[1].latent.shape == (5,)


def test_decoded_object_equals_the_mixture(pipe: MNIFPipeline) -> None:
    item = pipe.instance(2)
    points = torch.rand(50, 3) - 0.5
    raw = pipe.model.field(pipe.latents[2:3], points[None])[0]
    assert torch.allclose(item.field(points), raw, atol=1e-4)


def test_instances_by_name_number_and_suggestion(pipe: MNIFPipeline) -> None:
    assert torch.equal(pipe.instance("car_03").latent, pipe.latents[3])
    assert torch.equal(pipe.instance("3").latent, pipe.latents[3])
    assert torch.equal(pipe.instance(-1).latent, pipe.latents[-1])
    with pytest.raises(MNIFError, match="did you mean car_03"):
        pipe.instance("car03")
    with pytest.raises(MNIFError, match="there are 12"):
        pipe.instance(12)


def test_interpolation_includes_its_ends_and_is_straight(pipe: MNIFPipeline) -> None:
    path = pipe.interpolate("car_00", pipe.instance(5), num=5)
    codes = torch.stack([item.latent for item in path])
    assert torch.equal(codes[0], pipe.latents[0])
    assert torch.equal(codes[-1], pipe.latents[5])
    assert torch.allclose(codes[2], (codes[0] + codes[4]) / 2, atol=1e-6)
    with pytest.raises(MNIFError, match="at least 2"):
        pipe.interpolate(0, 1, num=1)


def test_latents_of_another_model_are_refused(pipe: MNIFPipeline) -> None:
    for other in (torch.zeros(1), torch.zeros(6), torch.zeros(2, 5)):
        with pytest.raises(MNIFError, match="takes 5 numbers"):
            pipe.interpolate(0, other)
        with pytest.raises(MNIFError, match="takes 5 numbers"):
            pipe.nearest(other)


def test_straight_in_whitened_coordinates_too(pipe: MNIFPipeline) -> None:
    whitening = pipe.prior.whitening
    white = torch.stack([whitening.whiten(item.latent) for item in pipe.interpolate(0, 1, num=4)])
    expected = torch.stack([torch.lerp(white[0], white[-1], k / 3) for k in range(4)])
    assert torch.allclose(white, expected, atol=1e-4)


def test_nearest_training_instance(pipe: MNIFPipeline) -> None:
    name, distance = pipe.nearest(pipe.instance("car_04"))
    assert (name, distance) == ("car_04", pytest.approx(0.0, abs=1e-5))
    space = pipe.prior.whitening
    code = torch.randn(5)
    codes = space.whiten(pipe.latents)
    distances = [(c - space.whiten(code)).square().mean().sqrt().item() for c in codes]
    name, distance = pipe.nearest(code)
    assert distance == pytest.approx(min(distances), rel=1e-4)
    assert name == pipe.names[int(np.argmin(distances))]


@pytest.mark.parametrize("latent", [torch.zeros(4), torch.full((5,), torch.nan)])
def test_bad_latents_are_refused(pipe: MNIFPipeline, latent: torch.Tensor) -> None:
    with pytest.raises(MNIFError, match="latent"):
        pipe.decode(latent)


@pytest.mark.parametrize("number", [0, -3])
def test_no_samples(pipe: MNIFPipeline, number: int) -> None:
    with pytest.raises(MNIFError, match="at least 1"):
        pipe(num_samples=number)


# --- objects ----------------------------------------------------------------------------------------------


def test_azimuth_zero_looks_at_the_front() -> None:
    class Front(torch.nn.Module):
        """A ball that is red on +x, green on +y and blue on +z."""

        def density(self, points: torch.Tensor) -> torch.Tensor:
            return 500.0 * (points.norm(dim=-1) < 0.3)

        def radiance(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return (points / points.norm(dim=-1, keepdim=True).clamp(min=1e-6)).clamp(0, 1), self.density(points)

    item = NeuralRadiance(torch.zeros(2), Front())
    for elevation, azimuth, channel in ((0, 0, 0), (0, 90, 1), (90, 0, 2)):
        center = item.render(elevation, azimuth, resolution=33).getpixel((16, 16))
        assert center[channel] > 200
        assert sum(center) - center[channel] < 100
    assert item.render(0, 0, resolution=33).getpixel((0, 0)) == (255, 255, 255)
    # from the front, the object's left side (+y) is on the picture's right
    assert (
        item.render(0, 0, resolution=33).getpixel((21, 16))[1] > item.render(0, 0, resolution=33).getpixel((11, 16))[1]
    )


def test_views_turntable_and_limits(pipe: MNIFPipeline, tmp_path: Path) -> None:
    item = pipe.instance(0)
    assert [view.size for view in item.views(3, resolution=16)] == [(16, 16)] * 3
    assert item.turntable(tmp_path / "turn.mp4", frames=4, resolution=16).stat().st_size > 500
    assert item.grid is item.grid
    for call in (
        lambda: item.render(resolution=0),
        lambda: item.render(radius=0.2),
        lambda: item.views(0),
        lambda: item.turntable(tmp_path / "none.mp4", frames=0),
    ):
        with pytest.raises(MNIFError):
            call()


def test_mesh_comes_out_y_up(pipe: MNIFPipeline, tmp_path: Path) -> None:
    from mnif_nerf.export.mesh import MeshOptions, field_to_mesh

    item = pipe.instance(1)
    mesh = item.mesh(resolution=24, keep="all")
    ours = field_to_mesh(item.field, 24, cells=item.cells, options=MeshOptions(keep="all"))
    assert np.array(mesh.vertices) == pytest.approx(np.array(ours.vertices)[:, [1, 2, 0]])
    assert mesh.is_watertight
    mesh.export(str(tmp_path / "car.glb"))
    read = trimesh.load(tmp_path / "car.glb", force="mesh")
    assert read.bounds == pytest.approx(mesh.bounds, abs=1e-5)
    assert item.occupancy(8).shape == (8, 8, 8)


def test_object_round_trip(pipe: MNIFPipeline, tmp_path: Path) -> None:
    item = pipe.instance(1)
    again = NeuralObject.load(item.save(tmp_path / "car.safetensors"))
    points = torch.rand(20, 3) - 0.5
    assert torch.equal(again.latent, item.latent)
    assert torch.equal(again.field.density(points), item.field.density(points))
    assert again.name == "car_01"
    assert again.render(resolution=12).tobytes() == item.render(resolution=12).tobytes()
    with pytest.raises(MNIFError, match="no such file"):
        NeuralObject.load(tmp_path / "absent.safetensors")
    save_file({"a": torch.zeros(1)}, str(tmp_path / "other.safetensors"))
    with pytest.raises(MNIFError, match="does not hold a neural object"):
        NeuralObject.load(tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(MNIFError, match="not a readable"):
        NeuralObject.load(tmp_path / "text.safetensors")


def test_pictures_too_large_for_the_memory(pipe: MNIFPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "available_memory", lambda: 320 * 50**2)
    with pytest.raises(MNIFError, match="use at most 50"):
        pipe.instance(0).render(resolution=51)
    assert pipe.instance(0).render(resolution=50).size == (50, 50)


def test_devices() -> None:
    with pytest.raises(MNIFError, match="not known"):
        MNIFPipeline.from_pretrained("x", device="toaster")
