"""What nerfstudio's models of all modalities share: the mixture field, a latent per training instance, and what
is shown of them.

Training and rendering take different roads. A training step mixes the drawn instances' networks once and
evaluates them together. Rendering collapses one latent into a small network, prepares it once (its occupancy
grid), and renders that; both are kept until the field changes.

Latents are either learned ("auto-decoding": a table with its own optimiser) or computed ("meta-learning": the
inner loop of `mnif_nerf.latents.meta`). Of a point loss, the second-order inner loop keeps the mixed weights of
every inner step and no activations; of rendered rays, it keeps what the field's own second derivative needs.
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
from torch import Tensor
from torch.nn import Parameter

from mnif_nerf.fields.compact import CompactField
from mnif_nerf.fields.modulations import build_field
from mnif_nerf.fields.spec import FieldSpec
from mnif_nerf.latents.encoding import EncodedLatents
from mnif_nerf.latents.meta import InnerRates, MetaConfig, Objective, adapt
from mnif_nerf.latents.table import LatentTable
from mnif_nerf.models.checkpoint import check_checkpoint, describe_checkpoint
from mnif_nerf.models.errors import WarnOnce
from mnif_nerf.models.scoring import pinhole_rays
from mnif_nerf.rendering.batch import PointBatch, RayBatch
from mnif_nerf.rendering.occupancy import OccupancyGrid, grid_points

_KEPT_FIELDS = 16  # collapsed fields kept at a time: the instances of one evaluation

Batch = RayBatch | PointBatch


def instances_of(data: Batch) -> Tensor:
    """`[B]` int64, the training instances that rays or points belong to."""
    return data.scenes if isinstance(data, RayBatch) else data.instances


@dataclass
class InstanceModelConfig(ModelConfig):
    """The mixture of neural implicit functions. The defaults are the paper's SRN Cars S shape."""

    _target: type = field(default_factory=lambda: InstanceModel)
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
    """Weight of the mean squared latent in the loss (auto-decoding only)."""
    latent_noise: float = 0.0
    """Standard deviation of the noise added to latents in training, in units of a latent coordinate."""

    def field_spec(self, channels: int = 1, resolution: int = 64) -> FieldSpec:
        """The shape of the mixture field.

        Args:
            channels: of the data (images).
            resolution: of the data (images).

        Raises:
            MNIFError: a value out of range.
        """
        return FieldSpec(
            width=self.width,
            hidden_layers=self.hidden_layers,
            num_bases=self.num_bases,
            latent_dim=self.latent_dim,
            w0=self.sine_frequency(resolution),
            coefficients=self.coefficients,
            init=self.init,
            **self.ends(channels),
        )

    def sine_frequency(self, resolution: int) -> float:
        """w0 of the field."""
        return self.w0

    def ends(self, channels: int) -> dict[str, Any]:
        """What a modality says of the field's inputs and outputs; nothing, for radiance."""
        return {}


class InstanceModel(Model):
    """See the module.

    What the dataset says arrives in `kwargs["metadata"]`: `scene_names` (of the instances), `shown_scene`, `bounds`
    (where objects can be, bool `[G, G, G]`, or None), and of grids `grid` (resolution and channels). `kwargs["meta"]`
    are the settings of the inner loop, or None.
    """

    config: InstanceModelConfig
    own_settings: tuple[str, ...] = ()

    def populate_modules(self) -> None:
        """Build field and latents from the random seed that nerfstudio has set; nothing is fetched."""
        super().populate_modules()
        metadata = self.kwargs["metadata"]
        self.meta: MetaConfig | None = self.kwargs.get("meta")
        self.data_grid: dict[str, int] = metadata.get("grid") or {}
        self.data_names: tuple[str, ...] = tuple(metadata["scene_names"])
        self.names = self.data_names
        self.shown_scene = int(metadata.get("shown_scene", 0))
        self.field = build_field(
            self.config.field_spec(self.data_grid.get("channels", 1), self.data_grid.get("resolution", 64))
        )
        seed, dim = torch.initial_seed() % 2**31, self.config.latent_dim
        self.latents: LatentTable | EncodedLatents
        if self.meta is None:
            self.latents = LatentTable(len(self.names), dim, self.config.latent_init_std, seed)
        else:
            self.latents, self.inner_rates = EncodedLatents(len(self.names), dim), InnerRates(dim, seed=seed)
        bounds = metadata.get("bounds")
        self.register_buffer("bounds", torch.ones(1, 1, 1, dtype=torch.bool) if bounds is None else bounds)
        # Latent row of each instance of the data (-1: none), where the checkpoint's are not the data's.
        self._rows: list[int] | None = None
        self._shown: Tensor | None = None
        self._fitted: Tensor | None = None
        self._kept: OrderedDict[bytes, tuple[Any, OccupancyGrid | None]] = OrderedDict()
        self._warn = WarnOnce()

    @property
    def adaptation(self) -> str:
        """How latents are found: "auto-decoding" or "meta-learning"."""
        return "auto-decoding" if self.meta is None else "meta-learning"

    def get_param_groups(self) -> dict[str, list[Parameter]]:
        """Basis networks ("fields"), latent projection ("projection"), and latent codes ("latents") or the rates
        of the inner loop ("inner_rates")."""
        groups = self.field.parameter_groups()
        if self.meta is None:
            return {**groups, "latents": list(self.latents.parameters())}
        return {**groups, "inner_rates": list(self.inner_rates.parameters())}

    # ----------------------------------------------------------------------------------------------- training

    def forward(self, ray_bundle: RayBundle | None, batch: dict[str, Any] | None = None) -> dict[str, Any]:
        """Training losses where `batch` holds data grouped by instance, else the rendered rays.

        Losses are computed in here, and not from the outputs, because only what runs inside `forward` has its
        gradients synchronised between devices.
        """
        if batch is not None and isinstance(batch.get("data"), Batch):
            return self.get_training_outputs(batch["data"], batch["seed"])
        return self.get_outputs(ray_bundle)  # type: ignore[arg-type]

    def get_training_outputs(self, data: Batch, seed: int) -> dict[str, Any]:
        """Losses of one step, a pure function of parameters, data and seed.

        Meta-learning adapts codes to the data first; the losses are those of the adapted codes on the same data.

        Returns:
            "losses": name to weighted scalar; "psnr": scalar without gradient, over the drawn rays or points
            (absent where the loss does not tell).

        Raises:
            MNIFError: the inner loop diverged.
        """
        self._kept.clear()
        instances = instances_of(data)
        if self.meta is None:
            codes = self.latents(instances)
        else:
            objective = self.objective(data, seed)
            codes = adapt(objective, len(instances), self.inner_rates(), self.meta, torch.is_grad_enabled())
        latents, generator = codes, torch.Generator().manual_seed(seed)
        if self.config.latent_noise > 0:
            noise = torch.randn(codes.shape, generator=generator).to(codes.device)
            latents = codes + self.config.latent_noise * noise
        outputs = self.losses(latents, data, generator)
        if self.meta is None and self.config.latent_weight > 0:
            outputs["losses"]["latent"] = self.config.latent_weight * codes.square().mean()
        return outputs

    def losses(self, latents: Tensor, data: Any, generator: torch.Generator) -> dict[str, Any]:
        """What `get_training_outputs` returns, of codes `[B, D]` on the data, less what regularises the codes."""
        raise NotImplementedError

    def objective(self, data: Any, seed: int | None = None) -> Objective:
        """What the inner loop descends: every instance's loss on the data.

        Args:
            data: as drawn by the data manager.
            seed: of what is random in the loss, the same in every inner step; None where nothing shall be.
        """
        raise NotImplementedError

    def get_metrics_dict(self, outputs: dict[str, Any], batch: dict[str, Any]) -> dict[str, Tensor]:
        """PSNR of the batch, as a tensor: reading it out would make the host wait for the device."""
        if "losses" in outputs:
            return {"psnr": outputs["psnr"]} if "psnr" in outputs else {}
        return {"psnr": -10.0 * torch.log10((outputs["rgb"] - batch["image"].to(outputs["rgb"])).square().mean())}

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

    def show_scene(self, scene: int) -> None:
        """Show this scene of the data wherever a camera names none, as it is at every moment of training."""
        self.shown_scene, self._shown = scene, None

    @contextmanager
    def rendering_latents(self, latents: Tensor) -> Iterator[None]:
        """Within the block, `scene_idx` counts along these codes `[K, D]` instead of the training table's."""
        self._fitted = latents.detach().to(self.device)
        try:
            yield
        finally:
            self._fitted = None

    def row_of(self, scene: int) -> int:
        """Row of the latents that belongs to this instance of the data; -1 where the model does not know it."""
        if self._rows is None:
            return scene if 0 <= scene < len(self.names) else -1
        return self._rows[scene] if 0 <= scene < len(self._rows) else -1

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
        row = self.row_of(scene) if self._fitted is None else scene
        if 0 <= row < len(table):
            return table[row]
        self._warn(f"scene {scene} is not among the {len(table)} this model was trained on; showing their mean.")
        return table.mean(dim=0)

    def knows(self, scene: int) -> bool:
        """Whether the model was trained on this scene of the data."""
        return self.row_of(scene) >= 0

    def collapsed(self, latent: Tensor) -> tuple[Any, OccupancyGrid | None]:
        """The small network of a latent code `[D]`, ready to render, and its occupancy grid (None where rendering
        needs none); kept until the field changes."""
        key = latent.cpu().numpy().tobytes()
        kept = self._kept.get(key)
        if kept is None:
            kept = self.prepared(self.field.collapse(latent).to(self.device))
            self._kept[key] = kept
            while len(self._kept) > _KEPT_FIELDS:
                self._kept.popitem(last=False)
        return kept

    def prepared(self, compact: CompactField) -> tuple[Any, OccupancyGrid | None]:
        """What `render_field` needs of a collapsed field."""
        raise NotImplementedError

    # ---------------------------------------------------------------------------------------------- rendering

    def render_field(
        self, field: Any, grid: OccupancyGrid | None, origins: Tensor, directions: Tensor
    ) -> dict[str, Tensor]:
        """`rgb` `[R, 3]`, `depth` and `accumulation` `[R, 1]` of rays `[R, 3]`, `rgb` first."""
        raise NotImplementedError

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
            out = {
                "rgb": origins.new_ones(len(origins), 3),
                "depth": origins.new_zeros(len(origins), 1),
                "accumulation": origins.new_zeros(len(origins), 1),
            }
            for scene in scenes.unique().tolist():
                chosen = scenes == scene
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
        field, grid = self.collapsed(self.latent_of(scene))
        if crop is not None and grid is not None:
            points = grid_points(grid.resolution, grid.half_extent, self.device)
            inside = crop.within(points).view(grid.cells.shape)
            grid = OccupancyGrid(grid.cells & inside, grid.least_density * inside, grid.half_extent)
        origins, directions = (rays.to(self.device, torch.float32) for rays in (origins, directions))
        out = self.render_field(field, grid, origins, directions)
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

    # --------------------------------------------------------------------------------------------- checkpoint

    def settings(self) -> dict[str, Any]:
        """Weights and sample counts of the losses, for the model folder."""
        return {name: getattr(self.config, name) for name in ("latent_weight", "latent_noise", *self.own_settings)}

    def get_extra_state(self) -> dict[str, Any]:
        """See `describe_checkpoint`."""
        return describe_checkpoint(self.names, self.field.spec, self.adaptation)

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
            MNIFError: see `check_checkpoint`.
        """
        check_checkpoint(state_dict, self.field.spec, self.adaptation)
        # The same Parameter with other contents, so that an optimiser built before still holds it.
        self.latents.weight.data = torch.zeros_like(state_dict["latents.weight"], device=self.device)
        if "bounds" in state_dict:
            self.bounds = torch.zeros_like(state_dict["bounds"], device=self.device)
        self._kept.clear()
        return super().load_state_dict(state_dict, strict=strict, assign=assign)
