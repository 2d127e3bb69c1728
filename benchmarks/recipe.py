"""The baseline of every comparison: a plain re-statement of the authors' SRN Cars S training recipe.

Written from the description of their release (not their code): unscaled bases mixed by broadcast-and-sum, points as
rows, 32 unjittered samples per ray over [0.8, 1.8], rays from all pixels of 32 (here: as many as there are) views,
colours in [-1, 1], density clip(elu(x, 0.1) + 0.1, 0, 10), an endless last interval, latents at zero under plain
SGD with rate 1e-4 and an L2 penalty of 1/2 |z|^2, AdamW 1e-4 for everything else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnif_nerf.data.store import PackedStore
from mnif_nerf.fields.siren import init_layer, layer_shapes


@dataclass(frozen=True)
class RecipeConfig:
    """SRN Cars S; batch sizes can be cut for small machines."""

    width: int = 64
    hidden_layers: int = 4
    num_bases: int = 256
    latent_dim: int = 128
    w0: float = 30.0
    scenes: int = 8
    views: int = 4
    pixels: int = 512
    samples: int = 32
    near: float = 0.8
    far: float = 1.8
    lr: float = 1e-4
    lr_latent: float = 1e-4


class RecipeField(nn.Module):
    """M stacked SIRENs; the mixture materialises the B x M x P tensor, as the release does."""

    def __init__(self, config: RecipeConfig) -> None:
        super().__init__()
        self.config = config
        shapes = layer_shapes(3, config.width, config.hidden_layers, 4)
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for layer, (out, fan_in) in enumerate(shapes):
            weight, bias = init_layer(config.num_bases, out, fan_in, layer == 0, config.w0)
            self.weights.append(nn.Parameter(weight))
            self.biases.append(nn.Parameter(bias))
        self.projection = nn.Linear(config.latent_dim, config.num_bases * len(shapes))
        with torch.no_grad():
            self.projection.bias.fill_(1.0 / config.num_bases)

    def forward(self, latents: Tensor, points: Tensor) -> Tensor:
        """Raw values `[B, N, 4]` at points `[B, N, 3]`."""
        alpha = self.projection(latents).view(len(latents), self.config.num_bases, len(self.weights))
        hidden = points
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases)):
            share = alpha[:, :, layer]
            mixed = (share[:, :, None, None] * weight.unsqueeze(0)).sum(dim=1)
            offset = (share[:, :, None] * bias.unsqueeze(0)).sum(dim=1)
            hidden = hidden @ mixed.transpose(1, 2) + offset.unsqueeze(1)
            if layer < len(self.weights) - 1:
                hidden = torch.sin(self.config.w0 * hidden)
        return hidden


def render(raw: Tensor, distances: Tensor) -> Tensor:
    """Composite raw values `[..., S, 4]` at distances `[S]` into colours `[..., 3]` in [-1, 1] over white."""
    density = (F.elu(raw[..., 3], alpha=0.1) + 0.1).clamp(0, 10)
    spacing = torch.cat([distances.diff(), distances.new_tensor([1e10])])
    alpha = 1 - torch.exp(-density * spacing)
    before = torch.cat([torch.ones_like(alpha[..., :1]), torch.cumprod(1 - alpha + 1e-10, dim=-1)[..., :-1]], dim=-1)
    weights = alpha * before
    return (weights.unsqueeze(-1) * raw[..., :3]).sum(dim=-2) + (1 - weights.sum(dim=-1, keepdim=True))


def view_rays(store: PackedStore, scene: int, views: Tensor) -> tuple[Tensor, Tensor]:
    """Origins and unnormalised directions `[V, H * W, 3]` of whole views: the release builds every ray, keeps few."""
    focal, cx, cy = (float(v) for v in store.intrinsics[scene])
    rows, columns = torch.meshgrid(torch.arange(store.height), torch.arange(store.width), indexing="ij")
    local = torch.stack([(columns + 0.5 - cx) / focal, (rows + 0.5 - cy) / focal, torch.ones(rows.shape)], dim=-1)
    poses = torch.from_numpy(store.poses[views.numpy()])
    directions = local.view(1, -1, 3) @ poses[:, :3, :3].transpose(1, 2)
    return poses[:, None, :3, 3].expand_as(directions), directions


class RecipeTrainer:
    """One auto-decoding step after the other, from a packed store."""

    def __init__(self, store: PackedStore, config: RecipeConfig, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.store, self.config = store, config
        self.field = RecipeField(config)
        self.latents = torch.zeros(store.num_scenes, config.latent_dim)
        self.optimizer = torch.optim.AdamW(self.field.parameters(), lr=config.lr, weight_decay=0.0)
        self.distances = torch.linspace(config.near, config.far, config.samples)

    @property
    def rays_per_step(self) -> int:
        """Rays whose colour enters the loss of one step."""
        return min(self.config.scenes, self.store.num_scenes) * self.config.views * self.config.pixels

    def step(self) -> float:
        """Draw a batch, take one joint step, return the loss."""
        config, store = self.config, self.store
        scenes = torch.randperm(store.num_scenes)[: config.scenes]
        origins, directions, colors = [], [], []
        for scene in scenes.tolist():
            first, last = store.view_range(scene)
            views = torch.randint(first, last, (config.views,))
            pixels = torch.randint(store.height * store.width, (config.pixels,))
            o, d = view_rays(store, scene, views)
            images = torch.from_numpy(store.images[views.numpy()]).view(config.views, -1, 3)
            origins.append(o[:, pixels].reshape(-1, 3))
            directions.append(d[:, pixels].reshape(-1, 3))
            colors.append(images[:, pixels].reshape(-1, 3).float() / 127.5 - 1)
        o, d, target = torch.stack(origins), torch.stack(directions), torch.stack(colors)
        points = o.unsqueeze(2) + d.unsqueeze(2) * self.distances.view(1, 1, -1, 1)
        codes = self.latents[scenes].requires_grad_()
        raw = self.field(codes, points.flatten(1, 2)).view(*points.shape[:3], 4)
        error = (render(raw, self.distances) - target).square().mean()
        loss = error + 0.5 * codes.square().sum()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        assert codes.grad is not None
        self.latents[scenes] = codes.detach() - config.lr_latent * codes.grad
        return float(error.detach())

    @torch.no_grad()
    def render_view(self, scene: int, pose: Tensor, intrinsics: tuple[float, float, float]) -> Tensor:
        """One view `[H, W, 3]` in [0, 1] of a training scene."""
        focal, cx, cy = intrinsics
        height, width = self.store.height, self.store.width
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        local = torch.stack([(columns + 0.5 - cx) / focal, (rows + 0.5 - cy) / focal, torch.ones(rows.shape)], dim=-1)
        directions = local.view(-1, 3) @ pose[:3, :3].T
        points = pose[:3, 3] + directions.unsqueeze(1) * self.distances.view(1, -1, 1)
        raw = self.field(self.latents[scene][None], points.view(1, -1, 3)).view(*points.shape[:2], 4)
        return ((render(raw, self.distances) + 1) / 2).clamp(0, 1).view(height, width, 3)


def gflop_per_point(width: int, hidden_layers: int) -> float:
    """Multiply-adds of forward and backward (three products per layer), in GFLOP per point."""
    products = sum(math.prod(shape) for shape in layer_shapes(3, width, hidden_layers, 4))
    return 3 * 2 * products / 1e9
