"""Small stand-ins for trained things: analytic balls, and random mixture fields of every modality."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mnif_nerf.fields.modulations import ModulatedField, build_field
from mnif_nerf.fields.modulations.mixture import MixtureField
from mnif_nerf.fields.spec import FieldSpec
from mnif_nerf.pipelines.model_folder import StoredModel


class Ball(torch.nn.Module):
    """A soft ball: density passes the export level at `radius`; its colour varies with the angle only."""

    def __init__(self, radius: float = 0.3, center: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> None:
        super().__init__()
        self.radius = radius
        self.center = torch.tensor(center)

    def density(self, points: Tensor) -> Tensor:
        """Density `[N]` that is log 2 * 32 (the default level) exactly on the ball's surface."""
        distance = (points - self.center).norm(dim=-1)
        return 32 * torch.log(torch.tensor(2.0)) * torch.exp(40 * (self.radius - distance)).clamp(max=50)

    def radiance(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Colour of the direction from the centre, so that it is the same at every depth."""
        return 0.5 + 0.5 * F.normalize(points - self.center, dim=-1), self.density(points)


class Balls(torch.nn.Module):
    """The union of several balls."""

    def __init__(self, *balls: Ball) -> None:
        super().__init__()
        self.balls = list(balls)

    def density(self, points: Tensor) -> Tensor:
        """The largest of the densities."""
        return torch.stack([ball.density(points) for ball in self.balls]).max(dim=0).values

    def radiance(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Colours of the first ball."""
        return self.balls[0].radiance(points)[0], self.density(points)


def tiny_model(num_instances: int = 6, seed: int = 0) -> StoredModel:
    """A random model whose objects have surfaces; nothing is trained, every shape is a blob."""
    spec = FieldSpec(width=16, hidden_layers=1, num_bases=8, latent_dim=5, w0=30.0)
    field = MixtureField(spec, seed=seed)
    with torch.no_grad():
        out, fan_in = spec.shapes[-1]
        field.bases[-1][:, : out * fan_in].mul_(60)
        field.bases[-1][:, out * fan_in :] = 0  # so that density goes up and down around its middle
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(num_instances, spec.latent_dim, generator=generator)
    names = tuple(f"car_{k:02d}" for k in range(num_instances))
    cells = torch.zeros(8, 8, 8, dtype=torch.bool)
    cells[1:7, 1:7, 1:7] = True
    return StoredModel(field.eval(), latents, names, cells=cells)


class SolidBall:
    """A solid ball as a voxel field: its value is exactly 0 at `radius` (world units, in a box of half extent 0.5).

    Args:
        radius, center: world units.
        sharpness: how steep the value is there, 1/world unit.
        head: "signed", or "logit" for the same solid told as logits.
    """

    def __init__(
        self,
        radius: float = 0.3,
        center: tuple[float, float, float] = (0.0, 0.0, 0.0),
        sharpness: float = 30.0,
        head: str = "signed",
    ) -> None:
        self.radius, self.sharpness, self.head = radius, sharpness, head
        self.center = torch.tensor(center)

    def evaluate(self, points: Tensor) -> Tensor:
        """Values `[1, N]` at field coordinates `[3, N]`."""
        distance = (0.5 * points - self.center.to(points).unsqueeze(1)).norm(dim=0, keepdim=True)
        logit = self.sharpness * (self.radius - distance)
        return 2 * logit if self.head == "logit" else torch.tanh(logit)


def tiny_voxel_model(num_instances: int = 6, seed: int = 0, head: str = "signed", resolution: int = 16) -> StoredModel:
    """A random model of voxels whose objects have surfaces, as after meta-learning."""
    sine = head == "signed"
    field = _lively_field(
        FieldSpec(
            out_features=1,
            width=16,
            hidden_layers=1,
            num_bases=8,
            latent_dim=5,
            w0=8.0,
            final_activation="sine" if sine else "linear",
            head=head,
        ),
        seed,
        gain=1.0 if sine else 10.0,
    )
    latents, names = _latents(num_instances, seed, "shape")
    return StoredModel(
        field,
        latents,
        names,
        modality="voxel",
        grid={"resolution": resolution, "channels": 1},
        rates=torch.linspace(0.01, 0.1, 5),
        adaptation={"method": "meta-learning", "inner_steps": 3, "inner_lr": 1.0, "first_order": False},
    )


def tiny_surface_model(num_instances: int = 6, seed: int = 0, channels: int = 4, color_latent: int = 0) -> StoredModel:
    """A random model of distances and colours, whose objects are blobs; nothing is trained."""
    size = {"width": 16, "hidden_layers": 1, "num_bases": 8, "latent_dim": 5, "color_latent": color_latent}
    spec = FieldSpec(out_features=channels, **size, w0=4.0, head="sdf")
    field = _lively_field(spec, seed, gain=1.5)
    latents, names = _latents(num_instances, seed, "thing")
    return StoredModel(field, latents, names, modality="sdf")


def tiny_image_model(
    num_instances: int = 6, seed: int = 0, channels: int = 3, resolution: int = 8, **choices: str
) -> StoredModel:
    """A random model of pictures, as after auto-decoding; `choices` of family and modulation."""
    field = _lively_field(
        FieldSpec(
            **choices,  # type: ignore[arg-type]
            in_features=2,
            out_features=channels,
            width=16,
            hidden_layers=1,
            num_bases=8,
            latent_dim=5,
            w0=8.0,
            final_activation="sine",
            head="signed",
        ),
        seed,
        gain=1.0,
    )
    latents, names = _latents(num_instances, seed, "picture")
    grid = {"resolution": resolution, "channels": channels}
    return StoredModel(field, latents, names, modality="image", grid=grid)


def _lively_field(spec: FieldSpec, seed: int, gain: float) -> ModulatedField:
    """A random field whose values go up and down around zero."""
    field = build_field(spec, seed=seed)
    with torch.no_grad():
        out, fan_in = spec.shapes[-1]
        last = field.parameter_groups()["fields"][len(spec.learned_shapes) - 1]
        last[..., : out * fan_in] *= gain
        last[..., out * fan_in :] = 0
    return field.eval()


def _latents(count: int, seed: int, name: str) -> tuple[Tensor, tuple[str, ...]]:
    latents = torch.randn(count, 5, generator=torch.Generator().manual_seed(seed))
    return latents, tuple(f"{name}_{k:02d}" for k in range(count))


class Rounded:
    """A box with rounded edges as a field of head "sdf": exact distances in a box of half extent 0.5, cut as learned.

    Args:
        half: half edges of the box, world units; zeros for a ball.
        radius: of the rounding, world units.
        center: world units.
        stretch: how much too fast distances grow.
        channels: 4, or 1 without colour.
    """

    head = "sdf"

    def __init__(
        self,
        half: tuple[float, float, float] = (0.0, 0.0, 0.0),
        radius: float = 0.3,
        center: tuple[float, float, float] = (0.0, 0.0, 0.0),
        stretch: float = 1.0,
        channels: int = 4,
    ) -> None:
        self.half, self.radius, self.center = torch.tensor(half), radius, torch.tensor(center)
        self.stretch, self.channels = stretch, channels

    def evaluate(self, points: Tensor) -> Tensor:
        """Raw values `[channels, N]` at field coordinates `[3, N]`; red grows with x, green with y, blue with z."""
        world = 0.5 * points
        beyond = (world - self.center.to(points).unsqueeze(1)).abs() - self.half.to(points).unsqueeze(1)
        most = beyond.amax(dim=0)
        distance = torch.where(most > 0, beyond.clamp(min=0).norm(dim=0), most) - self.radius
        solid = -(self.stretch * distance).clamp(-0.06, 0.06) / 0.1
        return torch.cat([4.0 * world, solid.unsqueeze(0)])[-self.channels :]
