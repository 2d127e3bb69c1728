"""Small stand-ins for trained things: an analytic sphere, and a random mixture field that has a surface."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mnif_nerf.fields.mixture import FieldSpec, MixtureField
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
