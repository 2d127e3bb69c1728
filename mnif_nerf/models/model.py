"""nerfstudio's model: the mixture field, one latent per training instance, and what is shown of them.

Training and rendering take different roads. A training step mixes the drawn instances' networks once and
evaluates them together. Rendering collapses one latent into a small network, finds where it is occupied, and
renders that; both are kept until the field changes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.models.base_model import Model, ModelConfig
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor
from torch.nn import Parameter

from mnif_nerf.errors import MNIFError
from mnif_nerf.fields.mixture import FieldSpec, MixtureField
from mnif_nerf.latents.table import LatentTable
from mnif_nerf.metrics.images import psnr
from mnif_nerf.models.scoring import ImageScores, pinhole_rays
from mnif_nerf.rendering.batch import RayBatch
from mnif_nerf.rendering.occupancy import OccupancyGrid, grid_points
from mnif_nerf.rendering.training import LossConfig, radiance_losses
from mnif_nerf.rendering.views import render_rays

CHECKPOINT_VERSION = 1
_KEPT_FIELDS = 16  # collapsed fields kept at a time: the scenes of one evaluation


@dataclass
class MNIFModelConfig(ModelConfig):
    """The mixture of neural implicit functions. The defaults are the paper's SRN Cars S shape."""

    _target: type = field(default_factory=lambda: MNIFModel)
    enable_collider: bool = False
    """Unused: near and far come from the scene box, whatever the camera."""
    eval_num_rays_per_chunk: int = 1 << 15
    """Rays rendered together."""
    width: int = 64
    """Hidden width of every basis network."""
    hidden_layers: int = 4
    """Hidden layers after the first one."""
    num_bases: int = 256
    """Number of basis networks."""
    latent_dim: int = 128
    """Size of a latent code."""
    w0: float = 30.0
    """Sine frequency."""
    coefficients: str = "layer-wise"
    """Mixture coefficients per basis and layer ("layer-wise") or per basis ("network-wise")."""
    init: str = "corrected"
    """"corrected" keeps the initial output's spread whatever the number of bases; "authors" does not."""
    latent_init_std: float = 0.0
    """Spread of the initial latent codes; 0 starts every instance from the average network."""
    latent_weight: float = 1e-3
    """Weight of the mean squared latent in the loss."""
    latent_noise: float = 0.0
    """Standard deviation of the noise added to latents in training, in units of a latent coordinate."""
    samples_per_ray: int = 8
    """Jittered samples of a ray inside its instance's hull."""
    mask_weight: float = 0.02
    """Weight of the squared error of the accumulation against the silhouette."""
    carve_weight: float = 0.1
    """Weight of the opacity of points outside the hull."""
    carve_length: float = 0.1
    """World units over which that opacity is measured."""
    grid_resolution: int = 48
    """Cells per side of the occupancy grid that rendering skips empty space with."""
    lpips: bool = False
    """Whether evaluation reports LPIPS too; its weights must be in torch's cache or within reach."""

    def field_spec(self) -> FieldSpec:
        """The shape of the mixture field.

        Raises:
            MNIFError: a value out of range.
        """
        return FieldSpec(
            width=self.width,
            hidden_layers=self.hidden_layers,
            num_bases=self.num_bases,
            latent_dim=self.latent_dim,
            w0=self.w0,
            coefficients=self.coefficients,
            init=self.init,
        )

    def loss_config(self, samples_per_ray: int | None = None) -> LossConfig:
        """Weights of the losses and samples per ray (another number of them, where given)."""
        samples = samples_per_ray or self.samples_per_ray
        return LossConfig(samples, self.mask_weight, self.carve_weight, self.carve_length)


class MNIFModel(Model):
    """See the module. What the dataset says arrives in `kwargs["metadata"]`: `scene_names`, `shown_scene`."""

    config: MNIFModelConfig

    def populate_modules(self) -> None:
        """Build field and latents from the random seed that nerfstudio has set; nothing is fetched."""
        super().populate_modules()
        metadata = self.kwargs["metadata"]
        self.data_names: tuple[str, ...] = tuple(metadata["scene_names"])
        self.names = self.data_names
        self.shown_scene = int(metadata.get("shown_scene", 0))
        self.field = MixtureField(self.config.field_spec())
        seed = torch.initial_seed() % 2**31
        self.latents = LatentTable(len(self.names), self.config.latent_dim, self.config.latent_init_std, seed)
        self._losses = self.config.loss_config()
        # Latent row of each scene of the data (-1: none), where the checkpoint's scenes are not the data's.
        self._rows: list[int] | None = None
        self._shown: Tensor | None = None
        self._fitted: Tensor | None = None
        self._kept: OrderedDict[bytes, tuple[Any, OccupancyGrid]] = OrderedDict()
        self._warned: set[str] = set()
        self._scores = ImageScores(self.config.lpips)
        bounds = metadata.get("bounds")
        self.register_buffer("bounds", torch.ones(1, 1, 1, dtype=torch.bool) if bounds is None else bounds)

    def get_param_groups(self) -> dict[str, list[Parameter]]:
        """Basis networks ("fields"), latent projection ("projection") and latent codes ("latents")."""
        return {
            "fields": list(self.field.bases.parameters()),
            "projection": list(self.field.projection.parameters()),
            "latents": list(self.latents.parameters()),
        }

    # ----------------------------------------------------------------------------------------------- training

    def forward(self, ray_bundle: RayBundle | None, batch: dict[str, Any] | None = None) -> dict[str, Any]:
        """Training losses where `batch` holds grouped rays, else the rendered rays.

        Losses are computed in here, and not from the outputs, because only what runs inside `forward` has its
        gradients synchronised between devices.
        """
        if batch is not None and isinstance(batch.get("rays"), RayBatch):
            return self.get_training_outputs(batch["rays"], batch["seed"])
        assert ray_bundle is not None
        return self.get_outputs(ray_bundle)

    def get_training_outputs(self, rays: RayBatch, seed: int) -> dict[str, Any]:
        """Losses of one step, a pure function of parameters, rays and seed.

        Returns:
            "losses": name to weighted scalar; "psnr": scalar without gradient, over the drawn rays.
        """
        self._kept.clear()
        generator = torch.Generator().manual_seed(seed)
        latents = codes = self.latents(rays.scenes)
        if self.config.latent_noise > 0:
            noise = torch.randn(codes.shape, generator=generator).to(codes.device)
            latents = codes + self.config.latent_noise * noise
        losses = radiance_losses(lambda points: self.field.evaluate(latents, points), rays, self._losses, generator)
        train_psnr = -10.0 * torch.log10(losses["rgb"].detach())
        if self.config.latent_weight > 0:
            losses["latent"] = self.config.latent_weight * codes.square().mean()
        return {"losses": losses, "psnr": train_psnr}

    def get_metrics_dict(self, outputs: dict[str, Any], batch: dict[str, Any]) -> dict[str, Tensor]:
        """PSNR of the batch, as a tensor: reading it out would make the host wait for the device."""
        if "psnr" in outputs:
            return {"psnr": outputs["psnr"]}
        return {"psnr": psnr(outputs["rgb"], batch["image"].to(outputs["rgb"]))}

    def get_loss_dict(
        self, outputs: dict[str, Any], batch: dict[str, Any], metrics_dict: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """The losses of `forward`, or the mean squared error of rendered rays against `batch["image"]`."""
        if "losses" in outputs:
            return outputs["losses"]
        return {"rgb": (outputs["rgb"] - batch["image"].to(outputs["rgb"])).square().mean()}

    # ------------------------------------------------------------------------------------------ what is shown

    def set_shown_latent(self, latent: Tensor | None) -> None:
        """Show this latent code `[D]` wherever a camera names no scene; None shows the chosen scene again."""
        self._shown = None if latent is None else latent.detach().to(self.device)

    @contextmanager
    def rendering_latents(self, latents: Tensor) -> Iterator[None]:
        """Within the block, `scene_idx` counts along these codes `[K, D]` instead of the training table's."""
        self._fitted = latents.detach().to(self.device)
        try:
            yield
        finally:
            self._fitted = None

    def latent_of(self, scene: int | None) -> Tensor:
        """The code `[D]` a camera of `scene` is rendered with; the shown one for None. Never raises.

        A scene that the checkpoint does not know gets the mean code, and is named once on the console:
        another scene's code would look like a wrong result of the right one.
        """
        table = self.latents.weight.detach() if self._fitted is None else self._fitted
        if scene is None:
            if self._shown is not None:
                return self._shown
            scene = self.shown_scene
        if self._fitted is None and self._rows is not None:
            row = self._rows[scene] if 0 <= scene < len(self._rows) else -1
        else:
            row = scene
        if 0 <= row < len(table):
            return table[row]
        self._warn(f"scene {scene} is not among the {len(table)} this model was trained on; showing their mean.")
        return table.mean(dim=0)

    def knows(self, scene: int) -> bool:
        """Whether the model was trained on this scene of the data."""
        return self._rows is None or self._rows[scene] >= 0

    def collapsed(self, latent: Tensor) -> tuple[Any, OccupancyGrid]:
        """The small network of a latent code `[D]` and its occupancy grid, kept until the field changes."""
        key = latent.cpu().numpy().tobytes()
        kept = self._kept.get(key)
        if kept is None:
            compact = self.field.collapse(latent).to(self.device)
            grid = OccupancyGrid.from_field(
                compact, self.config.grid_resolution, bounds=self.bounds, device=self.device
            )
            kept = (compact, grid)
            self._kept[key] = kept
            while len(self._kept) > _KEPT_FIELDS:
                self._kept.popitem(last=False)
        return kept

    # ---------------------------------------------------------------------------------------------- rendering

    @torch.no_grad()
    def get_outputs(self, ray_bundle: RayBundle) -> dict[str, Tensor]:
        """Render rays: `rgb` `[..., 3]`, `depth` `[..., 1]` along the unit ray, `accumulation` `[..., 1]`.

        The scene comes from `ray_bundle.metadata["scene_idx"]` `[..., 1]`, where that is there.
        """
        shape = ray_bundle.origins.shape[:-1]
        origins, directions = ray_bundle.origins.reshape(-1, 3), ray_bundle.directions.reshape(-1, 3)
        scenes = (ray_bundle.metadata or {}).get("scene_idx")
        if not isinstance(scenes, Tensor):
            out = self.render(origins, directions, None)
        else:
            scenes = scenes.reshape(-1)
            distinct = scenes.unique().tolist()
            parts = [(scenes == s, s) for s in distinct]
            out = {
                "rgb": origins.new_ones(len(origins), 3),
                "depth": origins.new_zeros(len(origins), 1),
                "accumulation": origins.new_zeros(len(origins), 1),
            }
            for chosen, scene in parts:
                for name, value in self.render(origins[chosen], directions[chosen], int(scene)).items():
                    out[name][chosen] = value
        return {name: value.view(*shape, value.shape[-1]) for name, value in out.items()}

    @torch.no_grad()
    def render(
        self, origins: Tensor, directions: Tensor, scene: int | None, crop: OrientedBox | None = None
    ) -> dict[str, Tensor]:
        """Render rays `[R, 3]` of one scene, `rgb` first (the viewer shows the first output).

        Args:
            origins, directions: world units, unit length.
            scene: as in `latent_of`.
            crop: nothing outside this box is shown, to the precision of the occupancy grid's cells.
        """
        compact, grid = self.collapsed(self.latent_of(scene))
        if crop is not None:
            points = grid_points(grid.resolution, grid.half_extent, self.device)
            inside = crop.within(points).view(grid.cells.shape)
            grid = OccupancyGrid(grid.cells & inside, grid.least_density * inside, grid.half_extent)
        out = render_rays(
            compact,
            origins.to(self.device, torch.float32),
            directions.to(self.device, torch.float32),
            grid,
            chunk=self.config.eval_num_rays_per_chunk,
        )
        return {name: out[name] for name in ("rgb", "depth", "accumulation")}

    @torch.no_grad()
    def get_outputs_for_camera(self, camera: Cameras, obb_box: OrientedBox | None = None) -> dict[str, Tensor]:
        """Render one camera: `rgb`, `depth`, `accumulation`, each `[H, W, C]`.

        Cameras of the viewer and of camera paths name no scene; they get the shown latent.
        """
        if camera.ndim > 0:
            camera = camera.flatten()[0:1]
        scenes = (camera.metadata or {}).get("scene_idx")
        scene = int(scenes.reshape(-1)[0]) if isinstance(scenes, Tensor) else None
        height, width = int(camera.height.reshape(-1)[0]), int(camera.width.reshape(-1)[0])
        rays = pinhole_rays(camera, height, width)
        if rays is None:
            bundle = camera.generate_rays(camera_indices=0, keep_shape=True)
            rays = bundle.origins.reshape(-1, 3), bundle.directions.reshape(-1, 3)
        out = self.render(*rays, scene, obb_box)
        return {name: value.view(height, width, -1) for name, value in out.items()}

    def get_rgba_image(self, outputs: dict[str, Tensor], output_name: str = "rgb") -> Tensor:
        """Straight colour and opacity `[..., 4]`, with the white background taken out."""
        accumulation = outputs["accumulation"]
        color = (outputs[output_name] - (1.0 - accumulation)) / accumulation.clamp(min=1e-6)
        return torch.cat([color.clamp(0.0, 1.0), accumulation], dim=-1)

    def get_image_metrics_and_images(
        self, outputs: dict[str, Tensor], batch: dict[str, Any]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Metrics of one rendered view as floats, and pictures: truth beside render, depth, accumulation."""
        return self._scores(outputs, batch["image"])

    # --------------------------------------------------------------------------------------------- checkpoint

    def get_extra_state(self) -> dict[str, Any]:
        """What a checkpoint must know beside the weights: above all the names that go with the latents."""
        return {"version": CHECKPOINT_VERSION, "names": list(self.names), "field": self.field.spec.to_dict()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Read back `get_extra_state`; scenes of the data are found among the checkpoint's by name."""
        self.names = tuple(state["names"])
        self._rows = None
        if self.names != self.data_names:
            position = {name: row for row, name in enumerate(self.names)}
            self._rows = [position.get(name, -1) for name in self.data_names]

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load a checkpoint, also one of another number of instances than the data on disk has.

        Raises:
            MNIFError: the checkpoint is of another version, or of a field of another shape.
        """
        extra = state_dict.get("_extra_state")
        extra = extra if isinstance(extra, dict) else {}
        version = extra.get("version")
        if version != CHECKPOINT_VERSION:
            raise MNIFError(
                f"the checkpoint has format {version}, this mnif_nerf reads {CHECKPOINT_VERSION}; "
                "use the version that trained it, or train again."
            )
        if extra["field"] != self.field.spec.to_dict():
            raise MNIFError(
                f"the checkpoint's field ({_differences(extra['field'], self.field.spec.to_dict())}) does "
                "not fit the configuration; pass the settings it was trained with."
            )
        # The same Parameter with other contents, so that an optimiser built before still holds it.
        self.latents.weight.data = torch.zeros_like(state_dict["latents.weight"], device=self.device)
        self.bounds = torch.zeros_like(state_dict["bounds"], device=self.device)
        self._kept.clear()
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def _warn(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            CONSOLE.print(f"[yellow]{text}")


def _differences(first: dict[str, Any], second: dict[str, Any]) -> str:
    keys = [key for key in first if first.get(key) != second.get(key)]
    return ", ".join(f"{key} {first[key]}, here {second.get(key)}" for key in keys) or "keys of another version"
