"""Pictures of image fields, pixel by pixel and on their plane."""

from __future__ import annotations

import pytest
import torch

from mnif_nerf.fields.compact import CompactField
from mnif_nerf.fields.modulations.mixture import MixtureField
from mnif_nerf.fields.spec import FieldSpec
from mnif_nerf.rendering import plane
from mnif_nerf.rendering.cameras import Intrinsics, orbit_pose, pixel_rays
from mnif_nerf.rendering.plane import render_image, render_plane


def ramp(channels: int = 3) -> CompactField:
    """Red grows down the rows, green to the right, blue is one half; grey is the red of it."""
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])[:channels]
    return CompactField([weight], [torch.zeros(channels)], head="signed")


def field(channels: int) -> CompactField:
    spec = FieldSpec(
        in_features=2, out_features=channels, width=16, hidden_layers=1, num_bases=4, latent_dim=3,
        final_activation="sine", head="signed",
    )  # fmt: skip
    return MixtureField(spec, seed=3).collapse(torch.randn(3, generator=torch.Generator().manual_seed(0)))


def rays(azimuth: float, elevation: float = 0.0, resolution: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    return pixel_rays(orbit_pose(elevation, azimuth), Intrinsics.default(resolution))


def test_an_image_is_the_field_at_pixel_centres() -> None:
    image = render_image(ramp(), 4)
    assert image.shape == (4, 4, 3)
    levels = torch.tensor([0.125, 0.375, 0.625, 0.875])
    torch.testing.assert_close(image[..., 0], levels[:, None].expand(4, 4))
    torch.testing.assert_close(image[..., 1], levels.expand(4, 4))
    torch.testing.assert_close(image[..., 2], torch.full((4, 4), 0.5))


def test_values_beyond_one_are_cut() -> None:
    steep = CompactField([torch.tensor([[3.0, 0.0]])], [torch.zeros(1)], head="signed")
    assert render_image(steep, 8).unique().tolist() == pytest.approx([0, 0.3125, 0.6875, 1])


@pytest.mark.parametrize("channels", [1, 3])
def test_finer_images_agree_with_coarser_ones_where_their_pixels_meet(
    channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    compact = field(channels)
    coarse, fine = render_image(compact, 8), render_image(compact, 24)
    assert coarse.shape == (8, 8, channels)
    torch.testing.assert_close(fine[1::3, 1::3], coarse, atol=1e-5, rtol=0)
    monkeypatch.setattr(plane, "_CHUNK", 100)
    torch.testing.assert_close(render_image(compact, 24), fine, atol=1e-5, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_from_the_front_a_camera_sees_the_image_itself(channels: int) -> None:
    """A camera so far away that its rays are parallel, its view just as wide as the plane."""
    compact, away = field(channels), 1000.0
    origins, directions = pixel_rays(orbit_pose(0, 0, away), Intrinsics.default(32, focal_over_width=away))
    out = render_plane(compact, origins, directions)
    assert {name: tuple(value.shape) for name, value in out.items()} == {
        "rgb": (32 * 32, 3), "depth": (32 * 32, 1), "accumulation": (32 * 32, 1)
    }  # fmt: skip
    assert out["accumulation"].mean() == 1
    image = render_image(compact, 32).expand(-1, -1, 3)
    torch.testing.assert_close(out["rgb"].view(32, 32, 3), image, atol=5e-3, rtol=0)
    assert image.std() > 0.05


def test_rows_run_down_columns_right_and_the_back_is_mirrored() -> None:
    front = render_plane(ramp(), *rays(0))["rgb"].view(64, 64, 3)[16:48, 16:48]
    assert (front[1:, :, 0] > front[:-1, :, 0]).all()
    assert (front[:, 1:, 1] > front[:, :-1, 1]).all()
    back = render_plane(ramp(), *rays(180))["rgb"].view(64, 64, 3)[16:48, 16:48]
    torch.testing.assert_close(back, front.flip(1), atol=1e-5, rtol=0)


def test_depth_is_the_distance_to_the_plane_and_white_lies_around_it() -> None:
    origins, directions = rays(25, 20)
    out = render_plane(ramp(), origins, directions)
    hit = out["accumulation"][:, 0] == 1
    assert 0.1 < hit.float().mean() < 0.6
    points = (origins + out["depth"] * directions)[hit]
    torch.testing.assert_close(points[:, 0], torch.zeros(len(points)), atol=1e-6, rtol=0)
    assert points[:, 1:].abs().max() <= 0.5
    torch.testing.assert_close(out["rgb"][hit, 0], 0.5 - points[:, 2], atol=1e-5, rtol=0)
    assert (out["rgb"][~hit] == 1).all()
    assert (out["accumulation"][~hit] == 0).all()
    assert out["depth"].isfinite().all()


def test_rays_beside_along_and_away_from_the_plane_miss() -> None:
    origins = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.6, 0.0], [0.5, 0.0, 0.0]])
    directions = torch.tensor([[-1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, -1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    out = render_plane(ramp(1), origins, directions)
    assert out["accumulation"][:, 0].tolist() == [1, 0, 0, 0, 0]
    assert out["depth"][0].item() == 1
    assert out["depth"].isfinite().all()
    torch.testing.assert_close(out["rgb"][0], torch.full((3,), 0.5))
    nothing = render_plane(ramp(), torch.zeros(0, 3), torch.zeros(0, 3))
    assert {tuple(value.shape) for value in nothing.values()} == {(0, 3), (0, 1)}
