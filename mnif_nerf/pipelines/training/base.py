"""nerfstudio's pipeline of any modality: a thin adapter around `Stage1Trainer` and the modality's evaluation."""

from __future__ import annotations

import sys
from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.pipelines.base_pipeline import Pipeline, VanillaPipeline, VanillaPipelineConfig
from torch import Tensor

from mnif_nerf import modalities
from mnif_nerf.errors import MNIFError
from mnif_nerf.files import write_json
from mnif_nerf.latents.model import Stage1Model
from mnif_nerf.latents.optimizers import OptimizerGroups
from mnif_nerf.latents.ranks import ranks_of_group
from mnif_nerf.latents.stage1 import Stage1Trainer
from mnif_nerf.machine import use_tf32
from mnif_nerf.modalities.settings import PipelineSettings
from mnif_nerf.modalities.training import ScoredItem, Scores, means
from mnif_nerf.models.base import InstanceModel
from mnif_nerf.models.errors import tell_user
from mnif_nerf.models.instance_data import InstanceDataManager
from mnif_nerf.pipelines.checkpoints import require_instances
from mnif_nerf.pipelines.run_checks import why_not_kept
from mnif_nerf.pipelines.run_folder import Run, finish_run, write_run_model
from mnif_nerf.pipelines.training.viewer_adapter import ViewerModel
from mnif_nerf.progress import say
from mnif_nerf.viewer.panel import ViewerPanel

_STEPS_BETWEEN_SHOWN = 100  # after which a viewer's computed latent is computed again


@dataclass
class InstancePipelineConfig(PipelineSettings, VanillaPipelineConfig):
    """Latents and networks of a data set, and the latent prior at its end."""

    _target: type = field(default_factory=lambda: InstancePipeline)


class InstancePipeline(VanillaPipeline):
    """See the module and `VanillaPipeline`."""

    config: InstancePipelineConfig  # type: ignore[assignment]
    datamanager: InstanceDataManager

    @tell_user
    def __init__(
        self,
        config: InstancePipelineConfig,
        device: str,
        test_mode: Literal["test", "val", "inference"] = "val",
        world_size: int = 1,
        local_rank: int = 0,
        grad_scaler: Any = None,
    ) -> None:
        ranks = ranks_of_group(device, local_rank)
        if ranks.size > 1:
            torch.manual_seed(ranks.decide(torch.initial_seed))  # nerfstudio gives each rank a seed of its own
        if Path(sys.argv[0]).stem == "ns-export":
            raise MNIFError(
                "ns-export makes clouds and meshes of a single scene, by way of pictures; use mnif-export-mesh "
                "--load-config RUN (--source training for instances, --format ply for points with colours)."
            )
        # Not VanillaPipeline's: it builds the model from the data set alone.
        Pipeline.__init__(self)
        self.ranks = ranks
        self.config, self.test_mode, self.world_size = config, test_mode, world_size
        self.seed = torch.initial_seed() % 2**31
        manager: Any = config.datamanager  # of the class that the configurations of nerfstudio have
        self.datamanager = manager.setup(
            device=device, test_mode=test_mode, world_size=world_size, local_rank=local_rank
        )
        self.datamanager.to(device)
        source, data = self.datamanager.source, self.datamanager.train_dataset
        self.kind = modalities.get(config.datamanager.modality)
        bounds = source.bounds() if test_mode == "val" else None
        stage1 = self.kind.training.build(config, source, bounds, self.seed)
        self._model = InstanceModel(
            config.model,  # type: ignore[arg-type]
            scene_box=data.scene_box,
            num_train_data=len(data),
            metadata=data.metadata,
            stage1=stage1,
            modality=self.kind.training,
            grid=source.grid(),
        )
        self.model.to(device)
        split = "val" if test_mode == "val" else "test"
        self.evaluation = self.kind.training.evaluation(source, config, split)
        if test_mode != "inference" and not self.datamanager.eval_dataset:
            # nerfstudio evaluates nothing where the evaluation set is empty, as it is without held-out views.
            self.datamanager.eval_dataset = self.datamanager.replacement_eval_dataset(self.evaluation)
        self.trainer: Stage1Trainer | None = None
        self.viewer_panel = ViewerPanel(ViewerModel(self))  # nerfstudio's viewer finds it; without one it is idle

    @property
    def model(self) -> InstanceModel:
        """The model."""
        return super().model  # type: ignore[return-value]

    # ----------------------------------------------------------------------------------------------- training

    def new_trainer(self, optimizers: OptimizerGroups) -> Stage1Trainer:
        """The training loop of this pipeline."""
        self.trainer = Stage1Trainer(
            self.model.stage1,
            self.datamanager.source,
            optimizers,
            self.seed,
            self.config.encode_batch,
            warn=partial(self._say, warning=True),
            ranks=self.ranks,
        )
        use_tf32(self.config.tf32, self.model.device)
        if self.config.cuda_graph:
            self.trainer.replay(self._say)
        return self.trainer

    def _say(self, text: str, warning: bool = False) -> None:
        if self.ranks.is_first:
            say(text, warning)

    @tell_user
    def get_train_loss_dict(self, step: int) -> tuple[Any, dict[str, Tensor], dict[str, Tensor]]:
        """Losses and metrics of one step; both depend on the parameters, the seed and the step alone."""
        trainer = self.trainer or self.new_trainer(OptimizerGroups({}, {}, {}, {}))
        outputs = trainer.losses(step)
        return outputs, outputs["losses"], {"psnr": outputs["psnr"]} if "psnr" in outputs else {}

    def get_training_callbacks(self, attributes: TrainingCallbackAttributes) -> list[TrainingCallback]:
        """Write the model folder with every checkpoint, and train the prior after the last step."""
        callbacks = super().get_training_callbacks(attributes)
        trainer = attributes.trainer
        if trainer is None:
            return callbacks
        run = Run(self.model.stage1, self.datamanager.source, self.config, trainer.base_dir, self.seed)

        def at_checkpoint(step: int) -> None:
            if step == 0 or self.ranks.decide(lambda: why_not_kept(trainer.stage1, run.folder, step)):
                return
            self.refresh_latents()
            if self.ranks.is_first:
                write_run_model(run, step)

        def at_end(step: int) -> None:
            why = self.ranks.decide(lambda: why_not_kept(trainer.stage1, run.folder, step))
            if why:
                raise MNIFError(why)
            self.refresh_latents()
            if self.ranks.is_first:
                finish_run(run, step, say)
                self.viewer_panel.refresh(locked=False)

        def at_view(step: int) -> None:
            self.refresh_latents([self.model.shown_scene])
            self.viewer_panel.refresh()

        after_step = [TrainingCallbackLocation.AFTER_TRAIN_ITERATION]
        if trainer.config.is_viewer_enabled():
            callbacks.append(TrainingCallback(after_step, tell_user(at_view), _STEPS_BETWEEN_SHOWN))
        every = trainer.config.steps_per_save
        if every > 0:
            callbacks.append(TrainingCallback(after_step, tell_user(at_checkpoint), update_every_num_iters=every))
        callbacks.append(TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN], tell_user(at_end)))
        return callbacks

    @tell_user
    def load_pipeline(self, loaded_state: dict[str, Any], step: int) -> None:
        """Load a checkpoint.

        Raises:
            MNIFError: it is of another version or shape, or training would go on with other instances.
        """
        super().load_pipeline(loaded_state, step)
        if self.test_mode == "val":
            require_instances(self.model.names, self.model.data_names, self.datamanager.get_datapath())

    def refresh_latents(self, instances: list[int] | None = None) -> None:
        """See `Stage1Trainer.refresh_latents`."""
        if self.trainer is not None:
            self.trainer.refresh_latents(instances)

    # --------------------------------------------------------------------------------------------- evaluation

    def _evaluated(self) -> Stage1Model:
        """The model, with the latents up to date that evaluation looks at, and those alone."""
        self.refresh_latents(self.evaluation.rows(self.model.stage1))
        return self.model.stage1

    @tell_user
    def get_eval_loss_dict(self, step: int) -> tuple[Any, dict[str, Tensor], dict[str, Tensor]]:
        """Loss and metrics of what evaluation looks at, at rays or points drawn for this step."""
        self._evaluated()
        return self.datamanager.eval_losses(self.model, self.evaluation, step)

    @tell_user
    def get_eval_image_metrics_and_images(self, step: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Metrics and pictures of one of the items to score, another at every call."""
        stage1 = self._evaluated()
        items = self.evaluation.seen(stage1) or self.evaluation.items(stage1)["unseen_"]
        picked = items[self.datamanager.eval_count % len(items)]
        self.datamanager.eval_count += 1
        scores = self.evaluation.score(self.model.collapsed, picked, with_pictures=True)
        height, width = scores.pictures["img"].shape[:2]
        return {**scores.metrics, "num_rays": height * width // 2}, scores.pictures

    @tell_user
    def get_average_eval_image_metrics(
        self, step: int | None = None, output_path: Path | None = None, get_std: bool = False
    ) -> dict[str, float]:
        """Mean metrics over all items to score; those of unseen instances of grids begin with "unseen_".

        Args:
            step: step of training.
            output_path: folder for the pictures and the scores of every instance (`per_instance.json`).
            get_std: whether "<metric>_std" stands beside every mean.

        Raises:
            MNIFError: there is nothing to score.
        """
        was_training = self.training
        self.eval()
        try:
            parts = self.evaluation.items(self._evaluated())
            rows: dict[str, list[dict[str, float]]] = defaultdict(list)
            for prefix, items in parts.items():
                for index, item in enumerate(items):
                    scores = self.evaluation.score(self.model.collapsed, item, output_path is not None)
                    rows[prefix].append(scores.metrics)
                    if output_path is not None:
                        _save_pictures(scores, Path(output_path), prefix, index)
        finally:
            self.train(was_training)
        if output_path is not None:
            _write_rows(Path(output_path), parts, rows)
        self._say(f"{'' if step is None else f'step {step}: '}{self.evaluation.report(rows)}")
        return {prefix + k: v for prefix, part in rows.items() for k, v in means(part, get_std).items()}


def _save_pictures(scores: Scores, folder: Path, prefix: str, index: int) -> None:
    from torchvision.utils import save_image

    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in scores.pictures.items():
        save_image(picture.permute(2, 0, 1).cpu(), folder / f"eval_{prefix}{name}_{index:04d}.png")


def _write_rows(folder: Path, parts: dict[str, list[ScoredItem]], rows: dict[str, list[dict[str, float]]]) -> None:
    """`per_instance.json`: mean scores of every instance."""
    table = {}
    for prefix, items in parts.items():
        grouped: dict[str, list[dict[str, float]]] = defaultdict(list)
        for item, row in zip(items, rows[prefix]):
            grouped[item.instance].append(row)
        table[f"{prefix}instances"] = {name: means(part) for name, part in grouped.items()}
    write_json(folder / "per_instance.json", table)
