"""What stage 1 learns (context adaptation, section 3.3 of the paper): a field, and a latent per training instance."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from mnif_nerf.errors import MNIFError
from mnif_nerf.fields.modulations import ModulatedField, build_field
from mnif_nerf.fields.spec import FieldSpec
from mnif_nerf.latents.checkpoint import check_checkpoint, describe_checkpoint, names_in
from mnif_nerf.latents.encoding import EncodedLatents, encode
from mnif_nerf.latents.meta import InnerRates, MetaConfig, Objective, adapt
from mnif_nerf.latents.table import LatentTable
from mnif_nerf.latents.watch import largest_of
from mnif_nerf.random import KeptSeed, generator_of

_LARGEST = 1e6  # of a weight or a latent number; those of trained models are below 100


class Stage1Task(Protocol):
    """What is minimised: the losses of one modality."""

    def losses(self, field: ModulatedField, latents: Tensor, batch: Any, generator: torch.Generator) -> dict[str, Any]:
        """Losses of codes `[B, D]` on a batch.

        Returns:
            "losses": name to weighted scalar; "psnr": scalar without gradient (absent where the loss does not tell).
        """
        ...

    def objective(self, field: ModulatedField, batch: Any, seed: int | KeptSeed | None = None) -> Objective:
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

    def objective(self, batch: Any, seed: int | KeptSeed | None = None) -> Objective:
        """See `Stage1Task.objective`."""
        return self.task.objective(self.field, batch, seed)

    def forward(self, batch: Any, seed: int | KeptSeed) -> dict[str, Any]:
        """Losses of one step, a pure function of parameters, batch and seed; see `Stage1Task.losses`.

        Meta-learning adapts codes to the batch first; the losses are those of the adapted codes on the same batch.

        Raises:
            MNIFError: the inner loop diverged.
        """
        self.version += 1
        generator = generator_of(seed, self.latents.weight.device)
        latents, penalty = self._codes(batch, seed, generator)
        outputs = self.task.losses(self.field, latents, batch, generator)
        outputs["losses"].update(penalty)
        return outputs

    def _codes(self, batch: Any, seed: int | KeptSeed, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
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
