"""Stage 1 (context adaptation, section 3.3 of the paper): field and latents learned from reconstruction error.

`Stage1Model` is what is learned, `Stage1Trainer` the loop. Neither knows where batches come from, or nerfstudio.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from mnif_nerf.errors import MNIFError
from mnif_nerf.fields import kernel
from mnif_nerf.fields.modulations import ModulatedField, build_field
from mnif_nerf.fields.spec import FieldSpec
from mnif_nerf.latents.checkpoint import check_checkpoint, describe_checkpoint, names_in
from mnif_nerf.latents.encoding import EncodedLatents, encode
from mnif_nerf.latents.meta import InnerRates, MetaConfig, Objective, adapt
from mnif_nerf.latents.optimizers import OptimizerGroups
from mnif_nerf.latents.pacing import Pacer
from mnif_nerf.latents.ranks import ONE, Ranks
from mnif_nerf.latents.table import LatentTable
from mnif_nerf.latents.watch import TrainingWatch, largest_of
from mnif_nerf.machine import ThreadTuner, denormals_flushed, threads_are_given
from mnif_nerf.random import stream

_LARGEST = 1e6  # of a weight or a latent number; those of trained models are below 100


class Stage1Task(Protocol):
    """What is minimised: the losses of one modality."""

    def losses(self, field: ModulatedField, latents: Tensor, batch: Any, generator: torch.Generator) -> dict[str, Any]:
        """Losses of codes `[B, D]` on a batch.

        Returns:
            "losses": name to weighted scalar; "psnr": scalar without gradient (absent where the loss does not tell).
        """
        ...

    def objective(self, field: ModulatedField, batch: Any, seed: int | None = None) -> Objective:
        """What the inner loop descends: every instance's loss on a batch.

        Args:
            field: the field.
            batch: of B instances.
            seed: random seed of what is random in the loss, the same in every inner step; None where nothing shall be.
        """
        ...


@dataclass(frozen=True)
class LatentSettings:
    """How latents start and what regularises them.

    Attributes:
        init_std: spread of the initial codes; 0 starts every instance from the average network.
        weight: weight of the mean squared code in the loss (auto-decoding only).
        noise: standard deviation of the noise added to codes in training.
        kl: weight of the KL divergence of an instance's Gaussian from the prior, in nats; 0 learns points instead of
            Gaussians (auto-decoding only). It takes the place of `weight` and `noise`.
    """

    init_std: float = 0.0
    weight: float = 1e-3
    noise: float = 0.0
    kl: float = 0.0


class Stage1Model(nn.Module):
    """The field, and a latent per training instance: learned by auto-decoding, or computed by meta-learning.

    Args:
        spec: specification of the field.
        names: names of the training instances.
        task: losses of the modality.
        settings: settings of the latents.
        meta: settings of the inner loop; None learns the latents (auto-decoding).
        bounds: bool `[G, G, G]` where objects can be, or None where they can be everywhere.
        seed: random seed of the initial weights.

    Attributes:
        field, latents, inner_rates: the learned modules (`inner_rates` after meta-learning only).
        version: counts changes of the weights: what was computed from older ones can be dropped.
    """

    bounds: Tensor
    inner_rates: InnerRates

    def __init__(
        self,
        spec: FieldSpec,
        names: Sequence[str],
        task: Stage1Task,
        settings: LatentSettings | None = None,
        meta: MetaConfig | None = None,
        bounds: Tensor | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.names = tuple(names)
        self.task, self.meta, self.settings = task, meta, settings or LatentSettings()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.field = build_field(spec)
        self.latents: LatentTable | EncodedLatents
        if meta is None:
            start, variational = self.settings.init_std, self.settings.kl > 0
            self.latents = LatentTable(len(self.names), spec.latent_dim, start, seed, variational)
        else:
            self.latents = EncodedLatents(len(self.names), spec.latent_dim)
            self.inner_rates = InnerRates(spec.latent_dim, seed=seed)
        self.register_buffer("bounds", torch.ones(1, 1, 1, dtype=torch.bool) if bounds is None else bounds)
        self.version = 0

    @property
    def adaptation(self) -> str:
        """How latents are found: "auto-decoding" or "meta-learning"."""
        return "auto-decoding" if self.meta is None else "meta-learning"

    def parameter_groups(self) -> dict[str, list[Parameter]]:
        """Networks ("fields"), latent projection ("projection"), and latent codes ("latents") or the rates of the
        inner loop ("inner_rates")."""
        groups = self.field.parameter_groups()
        if self.meta is None:
            return {**groups, "latents": list(self.latents.parameters())}
        return {**groups, "inner_rates": list(self.inner_rates.parameters())}

    def objective(self, batch: Any, seed: int | None = None) -> Objective:
        """See `Stage1Task.objective`."""
        return self.task.objective(self.field, batch, seed)

    def forward(self, batch: Any, seed: int) -> dict[str, Any]:
        """Losses of one step, a pure function of parameters, batch and seed; see `Stage1Task.losses`.

        Meta-learning adapts codes to the batch first; the losses are those of the adapted codes on the same batch.

        Raises:
            MNIFError: the inner loop diverged.
        """
        self.version += 1
        generator = torch.Generator(self.latents.weight.device).manual_seed(seed)
        latents, penalty = self._codes(batch, seed, generator)
        outputs = self.task.losses(self.field, latents, batch, generator)
        outputs["losses"].update(penalty)
        return outputs

    def _codes(self, batch: Any, seed: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Codes `[B, D]` of a step, and the loss of their own."""
        instances, settings = batch.instances, self.settings
        if self.meta is not None:
            objective = self.objective(batch, seed)
            codes = adapt(objective, len(instances), self.inner_rates(), self.meta, torch.is_grad_enabled())
        elif settings.kl > 0:
            assert isinstance(self.latents, LatentTable)
            codes, divergence = self.latents.draw(instances, generator, batch.share)
            return codes, {"kl": settings.kl * divergence.mean()}
        else:
            codes = self.latents(instances)
        penalty = {"latent": settings.weight * codes.square().mean()} if self.meta is None and settings.weight else {}
        if settings.noise > 0:
            draw = functools.partial(torch.randn, generator=generator, device=generator.device)
            codes = codes + settings.noise * batch.share.draw(draw, tuple(codes.shape)).to(codes.device)
        return codes, penalty

    def encode(self, objective: Callable[[Tensor], Objective], instances: Tensor | int, batch: int = 32) -> Tensor:
        """Latents `[N, D]` by the inner loop (meta-learning only); see `mnif_nerf.latents.encoding.encode`."""
        assert self.meta is not None
        return encode(objective, instances, self.inner_rates(), self.meta, batch)

    def require_finite(self, step: int) -> None:
        """Refuse networks and latents of numbers that nothing can be made of.

        Raises:
            MNIFError: training has diverged.
        """
        for name, value in (("latents", self.latents.weight), *self.named_parameters()):
            largest = largest_of(value)
            if not largest < _LARGEST:  # NaN too
                own = "the latents' learning rate" if self.meta is None else "`inner_lr`"
                found = "are not finite" if not math.isfinite(largest) else f"have grown to {largest:.0e}"
                raise MNIFError(
                    f"training has diverged at step {step} ({name} {found}), so nothing is written; use smaller "
                    f"learning rates (that of the fields, or {own})."
                )

    def get_extra_state(self) -> dict[str, Any]:
        """See `describe_checkpoint`."""
        return describe_checkpoint(self.names, self.field.spec, self.adaptation)

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Read back `get_extra_state`."""
        self.names = names_in(state)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load a checkpoint, also one of another number of instances than the data on disk has.

        Raises:
            MNIFError: see `check_checkpoint`.
        """
        check_checkpoint(state_dict, self.field.spec, self.adaptation, self.settings.kl > 0)
        device = self.latents.weight.device
        for table in (*self.latents.parameters(), *self.latents.buffers()):  # kept, for optimisers built before
            table.data = torch.zeros_like(state_dict["latents.weight"], device=device)
        if "bounds" in state_dict:
            self.bounds = torch.zeros_like(state_dict["bounds"], device=device)
        self.version += 1
        return super().load_state_dict(state_dict, strict=strict, assign=assign)


class BatchSource(Protocol):
    """Where batches come from: `mnif_nerf.modalities.training.TrainingData`."""

    def draw(self, step: int) -> Any:
        """The batch of training step `step`: a function of seed and step alone."""
        ...

    def fixed(self, instances: Tensor) -> Any:
        """What the latents of these training instances `[B]` are computed from, whatever else is in the batch."""
        ...


@dataclass(frozen=True)
class StepResult:
    """What one step yields: the summed loss, its parts, and further metrics; scalars without a graph."""

    loss: Tensor
    losses: dict[str, Tensor]
    metrics: dict[str, Tensor]


class Stage1Trainer:
    """The training loop of stage 1.

    Args:
        model: what is learned; it stays on its device.
        source: source of the batches.
        optimizers: optimizers of the model's `parameter_groups`.
        seed: random seed of jitter and noise.
        encode_batch: instances whose latents are computed together (meta-learning), which bounds the memory.
        warn: called with a sentence where training goes wrong, see `TrainingWatch`.
        ranks: the processes that train together, each of which the source gives its share of a batch.

    Attributes:
        pacer: plans the length of a run that has to end in time; None where the number of steps is given.
    """

    def __init__(
        self,
        model: Stage1Model,
        source: BatchSource,
        optimizers: OptimizerGroups,
        seed: int = 0,
        encode_batch: int = 32,
        warn: Callable[[str], None] = print,
        ranks: Ranks = ONE,
    ) -> None:
        self.model, self.source, self.optimizers, self.ranks = model, source, optimizers, ranks
        self.seed, self.encode_batch, self.watch = seed, encode_batch, TrainingWatch(warn)
        self._stale = False  # whether computed latents are older than the networks
        self._tuner: ThreadTuner | None = None
        self.pacer: Pacer | None = None

    @denormals_flushed()
    def step(self, step: int) -> StepResult:
        """Take one training step; it depends on the parameters, the seed and the step alone.

        Raises:
            MNIFError: training or the inner loop diverged, or another rank has ended.
        """
        start = time.perf_counter()
        self.optimizers.zero_grad()
        outputs = self.losses(step)
        functools.reduce(torch.add, outputs["losses"].values()).backward()
        losses, metrics = self._of_whole_batch(outputs)
        loss = functools.reduce(torch.add, losses.values())
        finite = self.watch.loss(step, loss)
        self.optimizers.step()
        if not finite:
            self.model.require_finite(step)
        took = time.perf_counter() - start
        if self._tuner is not None:
            self._tuner.step_took(took)
        if self.pacer is not None:
            self.pacer.step_took(step, took)
        return StepResult(loss, losses, metrics)

    def _of_whole_batch(self, outputs: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses and metrics of all ranks' parts together, and the gradients likewise."""
        losses = {name: value.detach() for name, value in outputs["losses"].items()}
        metrics = {name: value for name, value in outputs.items() if name == "psnr"}
        if self.ranks.size == 1:
            return losses, metrics
        errors = {name: torch.pow(10.0, -0.1 * value) for name, value in metrics.items()}  # decibels have no mean
        parameters = [each for group in self.optimizers.parameters.values() for each in group]
        means = self.ranks.average(parameters, {**losses, **errors})
        return {name: means[name] for name in losses}, {name: -10.0 * torch.log10(means[name]) for name in errors}

    def losses(self, step: int) -> dict[str, Any]:
        """The losses of a step, with their graph; see `Stage1Task.losses`."""
        self._stale = True
        batch, seed = self.source.draw(step), stream(self.seed, "jitter", step)
        if self.watch.due(step):
            self._watch_latents(step, batch, seed)
        return self.model(batch, seed)  # type: ignore[no-any-return]

    def _watch_latents(self, step: int, batch: Any, seed: int) -> None:
        model = self.model
        objective = model.objective(batch, seed)
        if model.meta is None:
            visits = step * self.ranks.size * len(batch.instances) / len(model.names)
            self.watch.latents(step, objective, model.latents(batch.instances).detach(), visits)
        else:
            self.watch.inner_loop(step, objective, model.inner_rates().detach(), len(batch.instances), model.meta)

    def train(self, first: int, last: int, on_step: Callable[[int, StepResult], None] | None = None) -> None:
        """Take the steps `first` to `last - 1`, or as many as the pacer plans; `on_step` is called after each."""
        step, complete = first, self.pacer is None and first >= last
        while not complete:
            result = self.step(step)
            if on_step is not None:
                on_step(step, result)
            complete = step + 1 >= last if self.pacer is None else self.pacer.over(step)
            step += 1

    def choose_threads(self, threads: int = 0, say: Callable[[str], None] = print) -> int | None:
        """Set the threads of CPU training: `threads`, or, for 0, the faster setting of a few timed steps.

        Found by timing, it is found again where the machine becomes busy or idle, see `ThreadTuner`.

        Args:
            threads: how many; 0 chooses.
            say: prints a line where a number was found by timing.

        Returns:
            the number that was found by timing; None where nothing was timed.
        """
        self._tuner = None
        if next(self.model.parameters()).device.type != "cpu":
            return None
        if threads > 0:
            torch.set_num_threads(threads)
            kernel.set_num_threads(threads)
            return None
        if threads_are_given():
            return None
        batch = self.source.draw(0)
        self._tuner = ThreadTuner(lambda: self._gradient(batch), say)
        return self._tuner.choose()

    @denormals_flushed()
    def _gradient(self, batch: Any) -> None:
        """What most of a step's time goes into, without any effect."""
        torch.stack(list(self.model(batch, stream(self.seed, "jitter", 0))["losses"].values())).sum().backward()
        self.model.zero_grad(set_to_none=True)

    def seconds_of_step(self, repeats: int = 7) -> float:
        """About how long a step takes just now, in seconds: the median of a few that change nothing."""
        times = []
        for step in range(repeats):
            start = time.perf_counter()
            self._gradient(self.source.draw(step))
            times.append(time.perf_counter() - start)
        return sorted(times[2:])[(repeats - 2) // 2]  # the first ones set up caches

    @torch.no_grad()
    def refresh_latents(self, instances: Sequence[int] | None = None) -> None:
        """After meta-learning steps: compute the training instances' latents of the networks as they are now.

        Args:
            instances: these only; all where None, and then every rank has to come here, as each computes some.

        Raises:
            MNIFError: the inner loop diverged.
        """
        table = self.model.latents.weight
        if self.model.meta is None or not self._stale:
            return
        rows = torch.arange(len(table)) if instances is None else torch.as_tensor(instances, dtype=torch.long)
        was_training = self.model.training
        self.model.eval()
        try:
            codes = self._encoded(rows) if instances is not None else self.ranks.compute_rows(rows, self._encoded)
        finally:
            self.model.train(was_training)
        table[rows.to(table.device)] = codes
        self._stale = instances is not None

    def _encoded(self, rows: Tensor) -> Tensor:
        return self.model.encode(
            lambda chosen: self.model.objective(self.source.fixed(chosen)), rows, self.encode_batch
        )
