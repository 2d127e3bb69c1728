"""The baseline of every comparison: a plain re-statement of the authors' SRN Cars S training recipe.

Written from a description of their release, not from its code: bases initialised as single SIRENs and
averaged unscaled, mixed by broadcast-and-sum; points as rows; 32 unjittered samples per ray, uniform in depth
over [0.8, 1.8] along directions whose depth component is 1; every ray of the drawn views is built and few are
kept, the same pixels for all views of a scene; colours in [-1, 1], density clip(elu(x, 0.1) + 0.1, 0, 10), an
endless last interval; latents from zero under plain SGD with rate 1e-4 and a penalty of 1/2 |z|^2 summed over
the batch; AdamW with rate 1e-4 and a cosine over 1,000 epochs for the rest.

Kinder to it than the release: views come from the packed store (the release decodes all 50 pictures of a
scene for every item), and denormals are flushed by the scripts that run it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnif_nerf.data.stores.scene_store import PackedStore
from mnif_nerf.fields import families
from mnif_nerf.fields.network import layer_shapes, split_flat
from mnif_nerf.rendering.cameras import Intrinsics


@dataclass(frozen=True)
class RecipeConfig:
    """SRN Cars S. The release takes 32 views and 512 pixels; fewer views make a step that fits a small
    machine.
    """

    in_features: int = 3
    out_features: int = 4
    width: int = 64
    hidden_layers: int = 4
    num_bases: int = 256
    latent_dim: int = 128
    w0: float = 30.0
    final_sine: bool = False
    scenes: int = 8
    views: int = 4
    pixels: int = 512
    samples: int = 32
    near: float = 0.8
    far: float = 1.8
    lr: float = 1e-4
    lr_latent: float = 1e-4
    latent_weight: float = 1.0
    epochs: int = 1000


class RecipeField(nn.Module):
    """M stacked SIRENs; the mixture materialises the B x M x P tensor, as the release does."""

    def __init__(self, config: RecipeConfig) -> None:
        super().__init__()
        self.config = config
        shapes = layer_shapes(config.in_features, config.width, config.hidden_layers, config.out_features)
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for layer, (out, fan_in) in enumerate(shapes):
            flat = families.get("siren").init_layer(config.num_bases, (out, fan_in), layer == 0, config.w0)
            (weight,), (bias,) = split_flat([flat], [(out, fan_in)])
            self.weights.append(nn.Parameter(weight.clone()))
            self.biases.append(nn.Parameter(bias[..., 0].clone()))
        self.projection = nn.Linear(config.latent_dim, config.num_bases * len(shapes))
        with torch.no_grad():
            self.projection.bias.fill_(1.0 / config.num_bases)

    def mix(self, latents: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Weights `[B, out, in]` and biases `[B, out]` of every layer, for latents `[B, D]`."""
        alpha = self.projection(latents).view(len(latents), self.config.num_bases, len(self.weights))
        mixed = []
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases)):
            share = alpha[:, :, layer]
            mixed.append(
                (
                    (share[:, :, None, None] * weight.unsqueeze(0)).sum(dim=1),
                    (share[:, :, None] * bias.unsqueeze(0)).sum(dim=1),
                )
            )
        return mixed

    def forward(self, latents: Tensor, points: Tensor) -> Tensor:
        """Raw values `[B, N, out]` at points `[B, N, in]`."""
        hidden = points
        for layer, (weight, bias) in enumerate(self.mix(latents)):
            hidden = hidden @ weight.transpose(1, 2)
            hidden += bias.unsqueeze(1)  # in place, as in the release: out of place is 4 to 20 % slower
            if layer < len(self.weights) - 1 or self.config.final_sine:
                hidden = torch.sin(self.config.w0 * hidden)
        return hidden


def render(raw: Tensor, depths: Tensor, lengths: Tensor) -> Tensor:
    """Composite samples into colours `[..., 3]` in [-1, 1] over white.

    Args:
        raw: `[..., S, 4]`.
        depths: `[S]` depths of the samples.
        lengths: `[...]` how far a ray goes per unit of depth (the norm of its direction).
    """
    density = (F.elu(raw[..., 3], alpha=0.1) + 0.1).clamp(0, 10)
    spacing = torch.cat([depths.diff(), depths.new_tensor([1e10])]) * lengths.unsqueeze(-1)
    alpha = 1 - torch.exp(-density * spacing)
    through = torch.cumprod(1 - alpha + 1e-10, dim=-1)
    weights = alpha * torch.cat([torch.ones_like(through[..., :1]), through[..., :-1]], dim=-1)
    return (weights.unsqueeze(-1) * raw[..., :3]).sum(dim=-2) + (1 - weights.sum(dim=-1, keepdim=True))


def view_rays(poses: Tensor, camera: Intrinsics) -> tuple[Tensor, Tensor]:
    """Origins `[V, H * W, 3]` of all rays of views `[V, 4, 4]`, and directions whose depth component is 1."""
    rows, columns = torch.meshgrid(
        torch.arange(camera.height, device=poses.device),
        torch.arange(camera.width, device=poses.device),
        indexing="ij",
    )
    x, y = (columns + 0.5 - camera.cx) / camera.focal, (rows + 0.5 - camera.cy) / camera.focal
    local = torch.stack([x, y, torch.ones_like(x)], dim=-1)
    directions = local.view(1, -1, 3) @ poses[:, :3, :3].transpose(1, 2)
    return poses[:, None, :3, 3].expand_as(directions), directions


class RecipeTrainer:
    """One auto-decoding step after the other, from a packed store."""

    def __init__(
        self, store: PackedStore, config: RecipeConfig, device: torch.device | str = "cpu", seed: int = 0
    ) -> None:
        torch.manual_seed(seed)
        self.store, self.config, self.device = store, config, torch.device(device)
        self.generator = torch.Generator().manual_seed(seed)
        self.field = RecipeField(config).to(self.device)
        self.latents = torch.zeros(store.num_scenes, config.latent_dim, device=self.device)
        self.optimizer = torch.optim.AdamW(self.field.parameters(), lr=config.lr, weight_decay=0.0)
        self.depths = torch.linspace(config.near, config.far, config.samples, device=self.device)
        self.scenes_per_step = min(config.scenes, store.num_scenes)
        self.steps_taken = 0
        self._waiting: list[int] = []

    @property
    def rays_per_step(self) -> int:
        """Rays whose colour enters the loss of one step."""
        return self.scenes_per_step * self.config.views * self.config.pixels

    @property
    def points_per_step(self) -> int:
        """Points at which the field is evaluated in one step."""
        return self.rays_per_step * self.config.samples

    def camera(self, scene: int) -> Intrinsics:
        """The camera of a training scene."""
        focal, cx, cy = (float(v) for v in self.store.intrinsics[self.store.view_range(scene)[0]])
        return Intrinsics(focal, cx, cy, self.store.height, self.store.width)

    def _draw_scenes(self) -> list[int]:
        if not self._waiting:
            self._waiting = torch.randperm(self.store.num_scenes, generator=self.generator).tolist()
        drawn, self._waiting = self._waiting[: self.scenes_per_step], self._waiting[self.scenes_per_step :]
        return drawn

    def _draw_rays(self, scene: int) -> tuple[Tensor, Tensor, Tensor]:
        """Origins, directions and colours in [-1, 1], each `[views * pixels, 3]`."""
        config, store = self.config, self.store
        first, last = store.view_range(scene)
        views = torch.randint(first, last, (config.views,), generator=self.generator)
        pixels = torch.randint(store.height * store.width, (config.pixels,), generator=self.generator)
        images = torch.from_numpy(store.images[views.numpy()]).view(config.views, -1, 3)
        colors = images[:, pixels].to(self.device).float() / 127.5 - 1
        poses = torch.from_numpy(store.poses[views.numpy()]).to(self.device)
        origins, directions = view_rays(poses, self.camera(scene))
        pixels = pixels.to(self.device)
        return origins[:, pixels].reshape(-1, 3), directions[:, pixels].reshape(-1, 3), colors.reshape(-1, 3)

    def gradient(self) -> Tensor:
        """Draw a batch and fill the gradients of networks and codes; returns the squared error."""
        scenes = self._draw_scenes()
        drawn = [self._draw_rays(scene) for scene in scenes]
        origins, directions, target = (torch.stack(part) for part in zip(*drawn))
        points = origins.unsqueeze(2) + directions.unsqueeze(2) * self.depths.view(1, 1, -1, 1)
        self._drawn = torch.tensor(scenes, device=self.device)
        # Only the drawn rows are updated, so they are leaves of their own in each step.
        self._codes = self.latents[self._drawn].requires_grad_()
        raw = self.field(self._codes, points.flatten(1, 2)).view(*points.shape[:3], 4)
        error = (render(raw, self.depths, directions.norm(dim=-1)) - target).square().mean()
        self.optimizer.zero_grad()
        (error + 0.5 * self.config.latent_weight * self._codes.square().sum()).backward()
        return error.detach()

    def step(self, progress: float = 0.0) -> Tensor:
        """One joint step; returns the squared error.

        Args:
            progress: not used; the recipe's schedule counts its own 1,000 epochs.
        """
        config = self.config
        epoch = self.steps_taken // math.ceil(self.store.num_scenes / self.scenes_per_step)
        factor = 0.5 * (1 + math.cos(math.pi * min(epoch / config.epochs, 1.0)))
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr * factor
        error = self.gradient()
        self.optimizer.step()
        assert self._codes.grad is not None
        self.latents[self._drawn] = self._codes.detach() - config.lr_latent * self._codes.grad
        self.steps_taken += 1
        return error

    @torch.no_grad()
    def render_view(self, scene: int, pose: Tensor, camera: Intrinsics) -> Tensor:
        """One view `[H, W, 3]` in [0, 1] of a training scene, whole at once as in the release."""
        origins, directions = view_rays(pose[None].to(self.device), camera)
        points = origins[0].unsqueeze(1) + directions[0].unsqueeze(1) * self.depths.view(1, -1, 1)
        raw = self.field(self.latents[scene][None], points.view(1, -1, 3)).view(*points.shape[:2], 4)
        colors = render(raw, self.depths, directions[0].norm(dim=-1))
        return ((colors + 1) / 2).clamp(0, 1).view(camera.height, camera.width, 3)
