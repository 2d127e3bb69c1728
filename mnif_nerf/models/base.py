"""nerfstudio's model of any modality: `Stage1Model` as nerfstudio knows models, and what is shown of it.

Training happens in `mnif_nerf.latents.stage1`. Rendering collapses one latent into a small network, prepares it once
(its occupancy grid), and renders that; both are kept until the networks change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.models.base_model import Model
from torch import Tensor
from torch.nn import Parameter

from mnif_nerf.fields.modulations import ModulatedField
from mnif_nerf.latents.meta import MetaConfig
from mnif_nerf.latents.model import Stage1Model
from mnif_nerf.metrics.views import ViewScores
from mnif_nerf.modalities.settings import ModelSettings
from mnif_nerf.modalities.training import FieldCache, ModalityTraining, known_rows
from mnif_nerf.models.errors import WarnOnce
from mnif_nerf.rendering.cameras import Intrinsics, pixel_rays
from mnif_nerf.rendering.occupancy import OccupancyGrid, grid_points

InstanceModelConfig = ModelSettings  # its name in `config.yml` files of 0.1.0

_INDICATOR = "device_indicator_param"  # nerfstudio's, empty


class InstanceModel(Model):
    """See the module.

    `kwargs` hold "stage1", the `Stage1Model`; "modality", its `ModalityTraining`; "grid", of its data; and "metadata"
    of the data set: `scene_names` (of the instances) and `shown_scene`.
    """

    config: ModelSettings  # type: ignore[assignment]

    def populate_modules(self) -> None:
        """Take over the model of stage 1; nothing is fetched."""
        self.stage1: Stage1Model = self.kwargs["stage1"]
        self.modality: ModalityTraining = self.kwargs["modality"]
        metadata = self.kwargs["metadata"]
        self.data_names: tuple[str, ...] = tuple(metadata["scene_names"])
        self.shown_scene = int(metadata.get("shown_scene", 0))
        self.collapsed = FieldCache(self.modality, self.stage1, self.config, self.kwargs.get("grid"))
        # Latent row of each instance of the data (-1: none), where the checkpoint's are not the data's.
        self._rows: list[int] | None = None
        self._shown: Tensor | None = None
        self._fitted: Tensor | None = None
        self._warn = WarnOnce()
        self._scores = ViewScores(getattr(self.config, "lpips", False), self._warn)

    @property
    def field(self) -> ModulatedField:
        """The field."""
        return self.stage1.field

    @property
    def latents(self) -> Any:
        """The latents of the training instances."""
        return self.stage1.latents

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the training instances."""
        return self.stage1.names

    @property
    def meta(self) -> MetaConfig | None:
        """Settings of the inner loop, or None after auto-decoding."""
        return self.stage1.meta

    def get_param_groups(self) -> dict[str, list[Parameter]]:
        """See `Stage1Model.parameter_groups`."""
        return self.stage1.parameter_groups()

    def forward(self, ray_bundle: RayBundle) -> dict[str, Tensor | list]:  # type: ignore[override]
        """The rendered rays."""
        return self.get_outputs(ray_bundle)  # type: ignore[return-value]

    # --------------------------------------------------------------------------- scores, for nerfstudio's tools

    def get_metrics_dict(self, outputs: dict[str, Any], batch: dict[str, Any]) -> dict[str, Tensor]:
        """PSNR of rendered rays against `batch["image"]`, as a tensor: reading it out would make the host wait."""
        return {"psnr": -10.0 * torch.log10(self.get_loss_dict(outputs, batch)["rgb"])}

    def get_loss_dict(
        self, outputs: dict[str, Any], batch: dict[str, Any], metrics_dict: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """The mean squared error of rendered rays against `batch["image"]`."""
        return {"rgb": (outputs["rgb"] - batch["image"].to(outputs["rgb"])).square().mean()}

    def get_image_metrics_and_images(
        self, outputs: dict[str, Tensor], batch: dict[str, Any]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Metrics of one rendered view as floats, and pictures: truth beside render, depth, accumulation."""
        return self._scores(outputs, batch["image"])

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

    # ---------------------------------------------------------------------------------------------- rendering

    @torch.no_grad()
    def get_outputs(self, ray_bundle: RayBundle) -> dict[str, Tensor]:  # type: ignore[override]
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
        out = self.modality.render(field, grid, origins, directions, self.config)
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

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The state of `Stage1Model`, without a name before its keys: what `mnif-train` reads and writes too."""
        state: dict[str, Any] = self.stage1.state_dict(*args, **kwargs)
        state[kwargs.get("prefix", "") + _INDICATOR] = self.device_indicator_param.detach()
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load a checkpoint; instances of the data are found among the checkpoint's by name.

        Raises:
            MNIFError: see `Stage1Model.load_state_dict`.
        """
        weights = {name: value for name, value in state_dict.items() if name != _INDICATOR}
        result = self.stage1.load_state_dict(weights, strict=strict, assign=assign)
        self._rows = None if self.names == self.data_names else known_rows(self.stage1, self.data_names)
        return result


def pinhole_rays(camera: Cameras, height: int, width: int) -> tuple[Tensor, Tensor] | None:
    """Origins and unit directions `[H * W, 3]` of one camera, ten times faster than nerfstudio's own.

    None for what is no pinhole with square pixels (fisheye, panorama, distortion): nerfstudio's rays serve
    there.
    """
    fx, fy, cx, cy = (float(getattr(camera, name).reshape(-1)[0]) for name in ("fx", "fy", "cx", "cy"))
    distorted = camera.distortion_params is not None and bool(camera.distortion_params.any())
    if int(camera.camera_type.reshape(-1)[0]) != CameraType.PERSPECTIVE.value or distorted:
        return None
    if abs(fx - fy) > 1e-5 * fx:
        return None
    c2w = torch.eye(4, device=camera.device)
    c2w[:3] = camera.camera_to_worlds.reshape(-1, 3, 4)[0]
    c2w[:3, 1:3] *= -1  # nerfstudio's OpenGL axes to ours
    return pixel_rays(c2w, Intrinsics(fx, cx, cy, height, width))
