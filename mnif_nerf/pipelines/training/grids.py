"""The training pipeline of voxel shapes and images: see `mnif_nerf.pipelines.training.base`; here is evaluation.

What is evaluated is reconstruction, over whole grids: of a few training instances from their latents, and of as many
unseen ones (split val while training, test afterwards) from the latents that the inner loop (meta-learning) or a
fit with frozen networks (auto-decoding) finds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

from mnif_nerf.data.stores.grid_store import GridStore
from mnif_nerf.errors import MNIFError
from mnif_nerf.files import write_json
from mnif_nerf.latents.encoding import GridAdaptation, latents_of_grids
from mnif_nerf.models.base import InstanceModelConfig
from mnif_nerf.models.errors import tell_user
from mnif_nerf.models.grid_data import GridDataManager, GridDataManagerConfig
from mnif_nerf.models.image import ImageModel
from mnif_nerf.models.voxel import VoxelModel, VoxelModelConfig
from mnif_nerf.pipelines.training.base import InstancePipeline, InstancePipelineConfig, means

_KINDS = {"voxel": "shapes", "image": "images"}


@dataclass
class GridPipelineConfig(InstancePipelineConfig):
    """Voxel shapes or images of a data set, and the latent prior at its end."""

    _target: type = field(default_factory=lambda: GridPipeline)
    datamanager: GridDataManagerConfig = field(default_factory=GridDataManagerConfig)
    """The data."""
    model: InstanceModelConfig = field(default_factory=VoxelModelConfig)
    """Field, latents and losses."""
    fit_points: int = 1024
    """Auto-decoding: points of each unseen instance in one of the steps that fit its latent; 0 takes all."""


@dataclass(frozen=True)
class Scored:
    """What an evaluation looks at: K instances of a store, and their latents `[K, D]`."""

    store: GridStore
    instances: list[int]
    latents: Tensor


class GridPipeline(InstancePipeline):
    """See the module."""

    config: GridPipelineConfig
    datamanager: GridDataManager
    model: VoxelModel | ImageModel

    def find_unseen(self) -> Tensor:
        """Latents `[K, D]` of the evaluated instances of the unseen split."""
        data, model, config = self.datamanager, self.model, self.config
        assert data.unseen is not None
        rates = None if model.meta is None else model.inner_rates().detach()
        how = GridAdaptation(
            meta=model.meta,
            rates=rates,
            training_latents=model.latents.weight.detach(),
            points=data.config.encode_points,
            fit_points=config.fit_points,
            fit_steps=config.fit_steps,
            batch_size=config.encode_batch,
        )
        instances = torch.from_numpy(data.evaluated(data.unseen))
        return latents_of_grids(model.field, data.sampler_of(data.unseen), instances, how)

    def seen(self) -> Scored | None:
        """Training instances, spread evenly over those that the model was trained on; None where it knows none."""
        data = self.datamanager
        known = [int(i) for i in data.evaluated(data.store) if self.model.knows(int(i))]
        if not known:
            return None
        self.refresh_latents(known)
        return Scored(data.store, known, torch.stack([self.model.latent_of(i) for i in known]))

    def unseen(self, step: int | None) -> Scored | None:
        """Instances never trained on; None where the data has no such split."""
        store = self.datamanager.unseen
        if store is None:
            return None
        return Scored(store, self.datamanager.evaluated(store).tolist(), self.latents_of_unseen(step))

    @tell_user
    def get_eval_loss_dict(self, step: int) -> tuple[Any, dict[str, Tensor], dict[str, Tensor]]:
        """Loss of the evaluated training instances, at points drawn for this step."""
        scored, data = self._seen_or_tell(), self.datamanager
        batch = data.points.fixed(torch.tensor(scored.instances), data.config.points_per_instance, salt=step + 1)
        outputs = self.model.losses(scored.latents, batch, torch.Generator())
        return outputs, self.model.get_loss_dict(outputs, {}), self.model.get_metrics_dict(outputs, {})

    @tell_user
    def get_eval_image_metrics_and_images(self, step: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Metrics of one evaluated training instance, and truth beside reconstruction; another at every call."""
        scored = self._seen_or_tell()
        picked = self.datamanager.eval_count % len(scored.instances)
        self.datamanager.eval_count += 1
        metrics, picture = self._score(scored, picked, with_picture=True)
        assert picture is not None
        return {**metrics, "num_rays": picture.shape[0] * picture.shape[1]}, {"img": picture}

    @tell_user
    def get_average_eval_image_metrics(
        self, step: int | None = None, output_path: Path | None = None, get_std: bool = False
    ) -> dict[str, float]:
        """Mean metrics of the evaluated training instances, and, as "unseen_<metric>", of the unseen ones.

        Args:
            step: of training.
            output_path: folder for pictures and `per_instance.json`.
            get_std: whether "<metric>_std" stands beside every mean.

        Raises:
            MNIFError: there is nothing to score.
        """
        was_training = self.training
        self.eval()
        try:
            parts = {"": self.seen(), "unseen_": self.unseen(step)}
            rows = {
                prefix: [self._score(scored, k, output_path, prefix)[0] for k in range(len(scored.instances))]
                for prefix, scored in parts.items()
                if scored is not None
            }
        finally:
            self.train(was_training)
        if not rows:
            raise MNIFError(
                f"{self.datamanager.get_datapath()}: the model was trained on none of its instances, and it has no "
                "split val or test; evaluate on the training data."
            )
        if output_path is not None:
            names = {prefix: [s.store.names[i] for i in s.instances] for prefix, s in parts.items() if s is not None}
            table = {prefix + "instances": dict(zip(names[prefix], rows[prefix])) for prefix in rows}
            write_json(Path(output_path) / "per_instance.json", table)
        self._report(rows, step)
        return {prefix + k: v for prefix, part in rows.items() for k, v in means(part, get_std).items()}

    def _seen_or_tell(self) -> Scored:
        scored = self.seen()
        if scored is None:
            raise MNIFError(f"{self.datamanager.get_datapath()}: the model was trained on none of its instances.")
        return scored

    def _score(
        self, scored: Scored, k: int, output_path: Path | None = None, prefix: str = "", with_picture: bool = False
    ) -> tuple[dict[str, float], Tensor | None]:
        latent, values = scored.latents[k], scored.store.values(scored.instances[k])
        metrics = self.model.score(latent, values)
        if output_path is None and not with_picture:
            return metrics, None
        picture = self.model.comparison(latent, values, self.datamanager.config.picture_size)
        if output_path is not None:
            from torchvision.utils import save_image

            Path(output_path).mkdir(parents=True, exist_ok=True)
            save_image(picture.permute(2, 0, 1), Path(output_path) / f"eval_{prefix}img_{k:04d}.png")
        return metrics, picture

    def _report(self, rows: dict[str, list[dict[str, float]]], step: int | None) -> None:
        """One line, such as: step 2000: PSNR 21.3, IOU 0.912, ACCURACY 0.993 over 8 training shapes; unseen: ..."""
        parts, kind = [], _KINDS[self.datamanager.config.modality]
        for prefix, part in rows.items():
            numbers = ", ".join(
                f"{name.upper()} {value:.1f}" if name == "psnr" else f"{name.upper()} {value:.3f}"
                for name, value in means(part).items()
            )
            start, end = ("unseen: ", "") if prefix else ("", f" training {kind}")
            parts.append(f"{start}{numbers} over {len(part)}{end}")
        CONSOLE.print(f"{'' if step is None else f'step {step}: '}{'; '.join(parts)}", soft_wrap=True)
