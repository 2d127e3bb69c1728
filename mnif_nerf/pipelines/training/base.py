"""What the training pipelines of all modalities share: the step, the latents' way, and when things are written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any, Literal

import torch
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.pipelines.base_pipeline import Pipeline, VanillaPipeline, VanillaPipelineConfig
from nerfstudio.utils import comms
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

from mnif_nerf.errors import MNIFError
from mnif_nerf.fields import kernel
from mnif_nerf.latents.encoding import encode
from mnif_nerf.latents.meta import MetaConfig, Objective, adapt
from mnif_nerf.machine import tune_threads
from mnif_nerf.models.base import InstanceModel, InstanceModelConfig, instances_of
from mnif_nerf.models.errors import tell_user
from mnif_nerf.models.instance_data import InstanceDataManager, InstanceDataManagerConfig
from mnif_nerf.pipelines.training.run_folder import finish_run, write_run_model
from mnif_nerf.pipelines.training.viewer_adapter import LiveModel
from mnif_nerf.random import stream
from mnif_nerf.viewer.panel import ViewerPanel

CONFIG_VERSION = 1
_STEPS_BETWEEN_SHOWN = 100  # after which a viewer's computed latent is computed again
_STEPS_BETWEEN_WATCHED = 400


@dataclass
class InstancePipelineConfig(VanillaPipelineConfig):
    """Latents and networks of a data set, and the latent prior at its end."""

    _target: type = field(default_factory=lambda: InstancePipeline)
    datamanager: InstanceDataManagerConfig = field(default_factory=InstanceDataManagerConfig)
    """The data."""
    model: InstanceModelConfig = field(default_factory=InstanceModelConfig)
    """Field, latents and losses."""
    adaptation: Literal["auto-decoding", "meta-learning"] = "auto-decoding"
    """Where latents come from: learned, one row of a table per instance, or computed by a few gradient steps from
    zero that the networks are trained to make good use of."""
    inner_steps: int = 3
    """Meta-learning: gradient steps from zero."""
    inner_lr: float = 1.0 / 32
    """Meta-learning: factor on the learned rates of these steps (1/32 is the authors' step in batches of 32)."""
    first_order: bool = False
    """Meta-learning: leave the second derivatives out, which is cheaper and less exact."""
    encode_batch: int = 32
    """Meta-learning: instances whose latents are computed together for a checkpoint; bounds the memory, no more."""
    fit_steps: int = 300
    """Auto-decoding: gradient steps that fit the latent of an unseen instance."""
    train_prior: bool = True
    """Whether the latent prior is trained at the end of the run."""
    prior_steps: int = 0
    """Steps of that training; 0 chooses them from the number of instances."""
    prior_variance: float = 0.95
    """Share of the latents' variance that the prior models; the rest is left out of samples."""
    threads: int = 0
    """Intra-op threads on the CPU; 0 times a few steps and takes the faster setting."""
    config_version: int = CONFIG_VERSION
    """Version of this configuration's format; leave it."""

    def meta(self) -> MetaConfig | None:
        """Settings of the inner loop, or None for auto-decoding.

        Raises:
            MNIFError: a value out of range.
        """
        if self.adaptation == "auto-decoding":
            return None
        return MetaConfig(self.inner_steps, self.inner_lr, self.first_order)


class InstancePipeline(VanillaPipeline):
    """See the module and `VanillaPipeline`."""

    config: InstancePipelineConfig
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
        if config.config_version != CONFIG_VERSION:
            raise MNIFError(
                f"the configuration has format {config.config_version}, this mnif_nerf reads "
                f"{CONFIG_VERSION}; use the version that wrote it, or train again."
            )
        if world_size > 1:
            raise MNIFError(
                f"training on {world_size} devices is not supported yet (the latents' gradients are sparse); "
                "use --machine.num-devices 1."
            )
        # Not VanillaPipeline's: it would not tell the model where latents come from.
        Pipeline.__init__(self)
        self.config, self.test_mode, self.world_size = config, test_mode, world_size
        meta = config.meta()
        self.datamanager = config.datamanager.setup(
            device=device, test_mode=test_mode, world_size=world_size, local_rank=local_rank
        )
        self.datamanager.to(device)
        data = self.datamanager.train_dataset
        self._model = config.model.setup(
            scene_box=data.scene_box,
            num_train_data=len(data),
            metadata=data.metadata,
            device=device,
            grad_scaler=grad_scaler,
            meta=meta,
        )
        self.model.to(device)
        self.seed = torch.initial_seed() % 2**31
        self._threads_chosen = False
        self._stale = False  # whether computed latents are older than the networks
        self._fitted: tuple[int | None, Tensor] | None = None
        self.viewer_panel = ViewerPanel(LiveModel(self))  # nerfstudio's viewer finds it; without one it is idle

    @property
    def model(self) -> InstanceModel:
        """The model, also where it is wrapped for several devices."""
        return super().model

    # ----------------------------------------------------------------------------------------------- training

    @tell_user
    def get_train_loss_dict(self, step: int) -> tuple[Any, dict[str, Tensor], dict[str, Tensor]]:
        """Losses and metrics of one step; both depend on the parameters, the seed and the step alone."""
        if not self._threads_chosen:
            self._choose_threads()
        self._stale = True
        batch = self._batch(step)
        if self.model.meta is not None and step % _STEPS_BETWEEN_WATCHED == _STEPS_BETWEEN_WATCHED // 2:
            self._watch_inner_loop(batch, step)
        outputs = self._model(None, batch)
        return outputs, self.model.get_loss_dict(outputs, batch), self.model.get_metrics_dict(outputs, batch)

    def _batch(self, step: int) -> dict[str, Any]:
        return {"data": self.datamanager.draw(step), "seed": stream(self.seed, "jitter", step)}

    def _watch_inner_loop(self, batch: dict[str, Any], step: int) -> None:
        """Say where the inner loop leads upwards: with steps too long it may do so for good and stay finite."""
        objective, rates = self.model.objective(batch["data"], batch["seed"]), self.model.inner_rates().detach()
        start = rates.new_zeros(len(instances_of(batch["data"])), len(rates)).requires_grad_(True)
        end = adapt(objective, len(start), rates, self.model.meta).requires_grad_(True)
        before, after = (float(objective(codes, False)[0].detach().mean()) for codes in (start, end))
        if not after < before:
            CONSOLE.print(
                f"[yellow]step {step}: the inner loop raises the loss ({before:.3g} to {after:.3g}); if it goes on "
                f"doing so, lower --pipeline.inner-lr (now {self.config.inner_lr:g}).",
                soft_wrap=True,
            )

    def _choose_threads(self) -> None:
        self._threads_chosen = True
        if self.model.device.type != "cpu":
            return
        if self.config.threads > 0:
            torch.set_num_threads(self.config.threads)
            kernel.set_num_threads(self.config.threads)
            return
        batch = self._batch(0)

        def gradient() -> None:
            losses = self.model(None, batch)["losses"]
            torch.stack(list(losses.values())).sum().backward()

        threads = tune_threads(gradient)
        self.model.zero_grad(set_to_none=True)
        CONSOLE.print(f"Training on {threads} thread{'s' if threads > 1 else ''}, the faster choice just now.")

    def get_training_callbacks(self, attributes: TrainingCallbackAttributes) -> list[TrainingCallback]:
        """Write the model folder with every checkpoint, and train the prior after the last step."""
        callbacks = super().get_training_callbacks(attributes)
        trainer = attributes.trainer
        if trainer is None:
            return callbacks

        def at_checkpoint(step: int) -> None:
            if step > 0 and comms.is_main_process():
                write_run_model(self, trainer.base_dir, step)

        def at_end(step: int) -> None:
            if not comms.is_main_process():
                return
            try:
                finish_run(self, trainer.base_dir, step)
                self.viewer_panel.refresh(locked=False)
            except KeyboardInterrupt:
                raise SystemExit(
                    "interrupted after the last step, before the latent prior was trained: go on with "
                    f"mnif-train-prior --load-config {trainer.base_dir / 'config.yml'}."
                ) from None

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
        if self.test_mode == "val" and self.model.names != self.model.data_names:
            raise MNIFError(
                f"the checkpoint holds {len(self.model.names)} instances, and "
                f"{self.datamanager.get_datapath()} holds {len(self.model.data_names)} others; "
                "go on with the data it was trained on."
            )

    # ------------------------------------------------------------------------------------------------ latents

    def refresh_latents(self, instances: Sequence[int] | None = None) -> None:
        """While training by meta-learning: compute the training instances' latents of the networks as they are now.

        Args:
            instances: these only; all where None.

        Raises:
            MNIFError: the inner loop diverged.
        """
        table = self.model.latents.weight
        if self.model.meta is None or self.test_mode != "val" or not self._stale:
            return
        rows = torch.arange(len(table)) if instances is None else torch.as_tensor(instances, dtype=torch.long)
        codes = self.encode(lambda chosen: self.model.objective(self.datamanager.fixed(chosen)), rows)
        table[rows.to(table.device)] = codes
        self._stale = instances is not None

    def encode(self, objective: Callable[[Tensor], Objective], instances: Tensor | int) -> Tensor:
        """Latents `[N, D]` by the inner loop (meta-learning only); see `mnif_nerf.latents.encoding.encode`."""
        self.model.eval()
        try:
            rates = self.model.inner_rates()
            return encode(objective, instances, rates, self.model.meta, self.config.encode_batch)
        finally:
            self.model.train(self.training)

    def latents_of_unseen(self, step: int | None) -> Tensor:
        """Latents `[K, D]` of the unseen instances that are evaluated, once for every step."""
        if self._fitted is None or step is None or self._fitted[0] != step:
            self._fitted = (step, self.find_unseen())
        return self._fitted[1]

    def find_unseen(self) -> Tensor:
        """Latents `[K, D]` of the unseen instances, the networks frozen."""
        raise NotImplementedError


def means(rows: list[dict[str, float]], with_std: bool = False) -> dict[str, float]:
    """Mean of every metric over `rows`, beside it "<metric>_std" where wanted."""
    result = {name: fmean(row[name] for row in rows) for name in rows[0]}
    if with_std:
        for name in list(result):
            values = [row[name] for row in rows]
            result[f"{name}_std"] = stdev(values) if len(values) > 1 else 0.0
    return result
