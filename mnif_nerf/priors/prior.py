"""The latent prior (stage 2): learns the distribution of the training latents and draws new ones.

Follows the paper's stage 2 (a DDPM on latents, arXiv 2310.19464) with whitening by PCA, a small
denoiser, averaged weights, and a few-step sampler; or flow matching in place of diffusion.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mnif_nerf.errors import MNIFError
from mnif_nerf.files import atomic_folder, write_json
from mnif_nerf.labels import Attribute, Labels, Wish, checked_label
from mnif_nerf.limits import require_memory, require_number
from mnif_nerf.priors.baselines import BASELINES, near_neighbours, sample_gaussian, sample_interpolations
from mnif_nerf.priors.conditions import ConditionalDenoiser, Conditions, Guided, encode_label
from mnif_nerf.priors.description import FORMAT, FORMAT_VERSION
from mnif_nerf.priors.networks import AnyDenoiser, network_name
from mnif_nerf.priors.schedulers import (
    DEFAULT_STEPS,
    Denoises,
    check_sampler,
    default_sampler,
    make_scheduler,
    reverse_process,
    sample_streams,
    scheduler_config,
    scheduler_from_config,
)
from mnif_nerf.priors.stored import read_parts
from mnif_nerf.priors.training import (
    Noising,
    OnStep,
    PriorConfig,
    TrainingReport,
    default_steps,
    held_out_losses,
    threads_for,
    train_denoiser,
)
from mnif_nerf.priors.whitening import Whitening
from mnif_nerf.progress import Advance, progress_bar
from mnif_nerf.tensor_files import write_tensors

_MOST_TEMPERATURE = 100.0  # far beyond it, samples are noise
_CALIBRATION_SAMPLES = 512
_JUDGED, _WORSE = 64, 3.0  # latents by which training is judged, and times the loss of a Gaussian that is divergence
# A larger correction would hide a denoiser that has not learned anything.
_GAIN_RANGE = (0.8, 1.25)


class NothingToLearnError(MNIFError):
    """There are too few latents for a prior, or they are all equal: no prior is possible, and nothing went wrong."""


class LatentPrior:
    """A trained prior: whitening, denoiser, scheduler settings and the (whitened) latents it was trained on.

    Make one with `LatentPrior.fit`, `LatentPrior.load` or `LatentPrior.adopt`.

    Attributes:
        attributes: of the labels that it was trained with, and that samples can be asked for by.
    """

    attributes: tuple[Attribute, ...] = ()

    def __init__(
        self,
        whitening: Whitening,
        denoiser: AnyDenoiser,
        scheduler: dict[str, Any],
        train: Tensor,
        calibration: tuple[Tensor, Tensor],
        config: PriorConfig,
        report: TrainingReport | None = None,
    ) -> None:
        self.whitening, self.denoiser = whitening, denoiser
        self.scheduler, self.train = scheduler, train
        self.gain, self.shift = calibration
        self.config, self.report = config, report

    @classmethod
    def fit(
        cls,
        latents: Tensor,
        config: PriorConfig | None = None,
        progress: bool = True,
        on_step: OnStep | None = None,
        device: torch.device | str | None = None,
        labels: Labels | None = None,
    ) -> LatentPrior:
        """Train a prior.

        Args:
            latents: [N, D], one row per training instance, N >= 2.
            config: how; defaults are sized to the data.
            progress: whether a progress bar is shown.
            on_step: called after every step with (step, loss).
            device: where to train; default, where the latents are.
            labels: of the N instances; samples can be asked for by them then.

        Raises:
            MNIFError: labels of another number of instances, fewer than 2 latents, a NaN or infinite number among
                them, or all latents equal.
        """
        config = config or PriorConfig()
        latents = _checked_table(latents)
        device = torch.device(device if device is not None else latents.device)
        whitening = Whitening.fit(latents.cpu(), config.whitening, config.rank, config.explained_variance)
        whitened = whitening.whiten(latents.cpu())
        if whitening.dim == 0 or not bool((whitened != whitened[0]).any()):
            raise NothingToLearnError(f"latents: all {len(latents)} are equal; train stage 1 before the prior.")
        conditions = None if labels is None else Conditions.of(_fitting(labels, latents), config.label_dropout)
        kept_out = min(round(config.held_out * len(latents)), len(latents) - 2)
        total = config.steps or default_steps(len(latents) - kept_out)
        spec = config.denoiser_spec(len(latents) - kept_out, whitening.dim)
        with threads_for(spec), progress_bar("latent prior", total, shown=progress) as bar:
            denoiser, report = train_denoiser(whitened, config, _showing(bar, on_step), device, conditions)
        settings = _default_scheduler(config)
        identity = (torch.ones(whitening.dim, device=device), torch.zeros(whitening.dim, device=device))
        prior = cls(whitening.to(device), denoiser, settings, whitened.to(device), identity, config, report)
        if conditions is not None:
            prior.attributes = conditions.attributes
        if config.calibrate:
            prior.gain, prior.shift = prior._calibration(None if conditions is None else conditions.values)
        return prior

    @classmethod
    def adopt(
        cls,
        denoiser: AnyDenoiser,
        whitening: Whitening,
        latents: Tensor,
        config: PriorConfig,
    ) -> LatentPrior:
        """A prior around a denoiser that was trained elsewhere, without calibration.

        Args:
            denoiser: for whitened latents; what it predicts is `config.prediction`.
            whitening: the map that it was trained behind.
            latents: [N, D], those it was trained on, N >= 2.
            config: how it was trained.

        Raises:
            MNIFError: sizes that do not fit each other, or latents that no prior can have.
        """
        latents = _checked_table(latents)
        if (whitening.latent_dim, whitening.dim) != (latents.shape[1], denoiser.spec.dim):
            raise MNIFError(
                f"latents of {latents.shape[1]} numbers, a whitening from {whitening.latent_dim} to {whitening.dim} "
                f"and a denoiser for {denoiser.spec.dim} do not fit each other; they come from different runs."
            )
        settings = _default_scheduler(config)
        identity = (torch.ones(whitening.dim), torch.zeros(whitening.dim))
        return cls(whitening, denoiser, settings, whitening.whiten(latents), identity, config)

    @property
    def latent_dim(self) -> int:
        """D, the size of a latent."""
        return self.whitening.latent_dim

    @property
    def default_sampler(self) -> str:
        """The sampler that `sample` takes where none is named."""
        return default_sampler(self.config.prediction)

    @property
    def device(self) -> torch.device:
        """Where the prior's tensors are."""
        return self.train.device

    def to(self, device: torch.device | str) -> LatentPrior:
        """Move the prior to a device, in place."""
        self.whitening.to(device)
        self.denoiser.to(device)
        self.train, self.gain, self.shift = (x.to(device) for x in (self.train, self.gain, self.shift))
        return self

    @torch.no_grad()
    def sample(
        self,
        n: int,
        seed: int = 0,
        sampler: str | None = None,
        steps: int | None = None,
        temperature: float = 1.0,
        batch: int = 1024,
        wish: Wish | None = None,
    ) -> Tensor:
        """Draw new latents.

        Args:
            n: how many.
            seed: at least 0; sample i of a seed is the same for every `n`, `batch` and device (to rounding).
            sampler: "dpm-solver++", "ddim", "ddpm" (ancestral, the authors'); of a prior with the prediction
                "flow", "flow-heun"; or without a denoiser "gaussian" and "interpolation" (of two near training
                latents). None takes "dpm-solver++", of flows "flow-heun".
            steps: evaluations of the denoiser; None takes 30, 100, 1,000 and 30 in that order. Fewer than 10 are
                too few for any of them. The samplers without a denoiser have none.
            temperature: factor on the initial and on all added noise; 1 is the model itself, at most 100; less is
                nearer to typical instances and less varied. For the samplers without a denoiser, a factor on
                the distance from the mean.
            batch: how many are drawn at once (memory only).
            wish: the label that samples shall have, and how strongly they are guided there.

        Returns:
            [n, D] latents.

        Raises:
            MNIFError: n, steps or batch below 1, steps above the number of training timesteps, an unknown
                sampler or one that does not go with the prediction, a temperature out of range, a seed below 0, or a
                label that training has not seen.
        """
        sampler = self.default_sampler if sampler is None else sampler
        check_sampler(sampler, BASELINES)
        if n < 1:
            raise MNIFError(f"number of samples: {n}, expected at least 1.")
        if batch < 1:
            raise MNIFError(f"batch: {batch}, expected at least 1.")
        require_number("`temperature`", temperature, 0.0, _MOST_TEMPERATURE)
        if seed < 0:
            raise MNIFError(f"`seed` {seed}: expected at least 0.")
        if steps is not None and steps < 1:
            raise MNIFError(f"`steps` {steps}: expected at least 1.")
        require_memory(8 * n * self.latent_dim, f"drawing {n:,} samples", "ask for fewer")
        model, parts = self._guided(wish, sampler), []
        for first in range(0, n, batch):
            streams = sample_streams(min(batch, n - first), seed, first)
            parts.append(self.whitening.unwhiten(self._draw(streams, sampler, steps, temperature, model)))
        return torch.cat(parts)

    def require_sound(self) -> None:
        """Refuse a prior whose training has diverged: it would be written over a better one.

        Raises:
            MNIFError: weights that are not finite, or a loss far above that of a Gaussian, which needs no training.
        """
        finite = all(bool(torch.isfinite(value).all()) for value in self.state().values())
        own = gaussian = math.nan
        if finite:
            config, some = self.config, self.train[:_JUDGED].cpu()
            noising = Noising(config.prediction, config.num_train_timesteps, config.schedule)
            own, gaussian = held_out_losses(self.denoiser, noising, some, self.device)
        if not own <= _WORSE * gaussian:
            found = f"its loss is {own:.3g}, that of a Gaussian {gaussian:.3g}" if finite else "NaN or infinite weights"
            raise MNIFError(
                f"the training of the prior has diverged ({found}), so it is not written; use a smaller "
                "`learning_rate` or `latent_noise`."
            )

    def spacing(self, among: Sequence[int] | None = None) -> float:
        """The median distance from a training latent to its nearest other one, as a root mean
        square over the whitened dimensions (1 is one standard deviation); `among` these rows, or all."""
        train = self.train if among is None else self.train[list(among)]
        index = near_neighbours(train, 1)[:, 0]
        distance = (train - train[index]).square().mean(1).sqrt()
        return float(distance.median())

    def state(self) -> dict[str, Tensor]:
        """All tensors of the prior by name, as `save` writes them."""
        tensors = {f"denoiser.{name}": value for name, value in self.denoiser.state_dict().items()}
        tensors |= {f"whitening.{name}": value for name, value in self.whitening.state_dict().items()}
        tensors |= {"train": self.train, "calibration.gain": self.gain, "calibration.shift": self.shift}
        return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}

    def save(self, folder: Path | str) -> None:
        """Write `prior.json`, `prior.safetensors` and `scheduler/scheduler_config.json`, all or nothing.

        An existing prior in `folder` is replaced.

        Raises:
            MNIFError: `folder` holds something that is not a prior, or the disk is full or cannot be written.
        """
        folder = Path(folder)
        if folder.exists() and (
            not folder.is_dir() or (any(folder.iterdir()) and not (folder / "prior.json").exists())
        ):
            raise MNIFError(f"{folder}: exists and is not a prior folder; choose another name or remove it first.")
        content: dict[str, Any] = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "latent_dim": self.latent_dim,
            "dim": self.whitening.dim,
            "num_latents": len(self.train),
            "whitening": self.whitening.mode,
            "network": network_name(self.denoiser),
            "denoiser": self.denoiser.spec.to_dict(),
            "training": self.config.to_dict(),
            "report": None if self.report is None else asdict(self.report),
        }
        if self.attributes:
            content["labels"] = [attribute.to_dict() for attribute in self.attributes]
        with atomic_folder(folder, replace=True) as temporary:
            write_tensors(temporary / "prior.safetensors", self.state())
            write_json(temporary / "scheduler" / "scheduler_config.json", self.scheduler)
            write_json(temporary / "prior.json", content)

    @classmethod
    def load(cls, folder: Path | str, device: torch.device | str = "cpu") -> LatentPrior:
        """Read what `save` wrote.

        Raises:
            MNIFError: no prior there, one of another format version, or files that do not fit together.
        """
        parts = read_parts(Path(folder))
        prior = cls(
            parts.whitening, parts.denoiser, parts.scheduler, parts.train, parts.calibration, parts.config, parts.report
        )
        prior.attributes = parts.attributes
        return prior.to(device)

    def _guided(self, wish: Wish | None, sampler: str) -> Denoises:
        """What samplers ask: the denoiser, guided to the label that is wished for."""
        label = {} if wish is None else checked_label(wish.label, self.attributes)
        if wish is None or not label:
            return self.denoiser
        if sampler in BASELINES:
            raise MNIFError(f"`label`: the sampler {sampler} knows no labels; leave one of the two out.")
        assert isinstance(self.denoiser, ConditionalDenoiser)
        return Guided(self.denoiser, encode_label(label, self.attributes), wish.guidance)

    def _draw(
        self, streams: list[torch.Generator], sampler: str, steps: int | None, temperature: float, model: Denoises
    ) -> Tensor:
        if steps is not None and sampler in BASELINES:
            raise MNIFError(f"`steps` {steps}, and the sampler {sampler} has none; leave them out.")
        if sampler == "gaussian":
            return sample_gaussian(self.train, streams, temperature)
        if sampler == "interpolation":
            return sample_interpolations(self.train, streams, temperature)
        scheduler = scheduler_from_config(self.scheduler, sampler, self.denoiser.ddim_spacing)
        limit = int(scheduler.config.num_train_timesteps)
        if steps is not None and steps > limit:
            raise MNIFError(f"`steps` {steps}: expected at most {limit}, the timesteps the prior was trained with.")
        count = min(DEFAULT_STEPS[sampler], limit) if steps is None else steps
        with threads_for(self.denoiser.spec):
            drawn = reverse_process(model, scheduler, count, streams, self.whitening.dim, temperature, self.device)
        return drawn * self.gain + self.shift

    def _calibration(self, conditions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Gain and shift per dimension that give samples the training latents' deviations and means; `conditions`
        `[N, A]` are those of the training latents, which the samples have in turn."""
        streams = sample_streams(_CALIBRATION_SAMPLES, self.config.seed, first=2**32)
        model: Denoises = self.denoiser
        if conditions is not None and isinstance(self.denoiser, ConditionalDenoiser):
            rows = torch.arange(_CALIBRATION_SAMPLES) % len(conditions)
            told: Any = self.denoiser
            model = partial(told, conditions=conditions[rows].to(self.device))
        drawn = self._draw(streams, self.default_sampler, None, 1.0, model)
        gain = (self.train.std(0) / drawn.std(0).clamp(min=1e-6)).clamp(*_GAIN_RANGE)
        return gain, self.train.mean(0) - gain * drawn.mean(0)


def _default_scheduler(config: PriorConfig) -> dict[str, Any]:
    name = default_sampler(config.prediction)
    return scheduler_config(make_scheduler(name, config.prediction, config.num_train_timesteps, config.schedule))


def _showing(bar: Advance, on_step: OnStep | None) -> OnStep:
    def step_done(step: int, loss: float) -> None:
        bar(note=f"steps, loss {loss:.3f}")
        if on_step is not None:
            on_step(step, loss)

    return step_done


def _fitting(labels: Labels, latents: Tensor) -> Labels:
    if len(labels) != len(latents):
        raise MNIFError(f"labels of {len(labels)} instances do not fit {len(latents)} latents; give one for each.")
    return labels


def _checked_table(latents: Tensor) -> Tensor:
    if latents.ndim != 2 or latents.shape[1] < 1:
        raise MNIFError(f"latents: shape {tuple(latents.shape)}, expected [N, D], one row per training instance.")
    if len(latents) < 2:
        raise NothingToLearnError(
            f"latents: {len(latents)}, expected at least 2; a prior needs more than one instance."
        )
    broken = (~torch.isfinite(latents)).any(1).nonzero().flatten().tolist()
    if broken:
        raise MNIFError(
            f"latents: row {broken[0]} holds a NaN or infinite number ({len(broken)} such rows); train "
            "stage 1 again with a lower latent learning rate."
        )
    return latents.detach().float()
