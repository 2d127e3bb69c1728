"""Training of the denoiser on whitened latents."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mnif_nerf.errors import MNIFError
from mnif_nerf.files import from_description
from mnif_nerf.limits import is_number, require_count, require_memory, require_number
from mnif_nerf.machine import denormals_flushed, one_thread
from mnif_nerf.priors.conditions import ConditionalDenoiser, ConditionalSpec, Conditions, LabelDropout
from mnif_nerf.priors.denoiser import Denoiser, DenoiserSpec
from mnif_nerf.priors.functa import FunctaSpec
from mnif_nerf.priors.schedulers import PREDICTIONS, SCHEDULES, make_scheduler
from mnif_nerf.priors.whitening import MODES, WhiteningMode
from mnif_nerf.random import stream
from mnif_nerf.schedules import warmup_cosine

# What is beyond any prior; time and memory are checked when it is trained.
_MOST = {
    "rank": 10**9,
    "num_train_timesteps": 100_000,
    "width": 1_000_000,
    "blocks": 1000,
    "steps": 10**9,
    "batch_size": 10**9,
}
_CHOSEN = ("rank", "width", "blocks", "steps")  # from the data, where they are None
_LARGEST = {"latent_noise": 1.0, "explained_variance": 1.0, "learning_rate": math.inf, "weight_decay": math.inf}
_ACTIVATIONS, _COPIES = 8, 5  # numbers kept of a feature of a block; weights, their gradient, average and two moments

OnStep = Callable[[int, float], None]


@dataclass(frozen=True)
class PriorConfig:
    """How a latent prior is trained.

    Attributes:
        whitening: "pca", "per-dimension" or "none".
        rank: largest number of principal directions kept.
        explained_variance: share of the variance that the kept principal directions hold, in (0, 1].
        prediction: what the denoiser predicts: "v_prediction", "sample" (the authors' choice) or "epsilon"; or "flow",
            the velocity of flow matching in place of diffusion.
        num_train_timesteps: T of the noising process.
        schedule: schedule of its noise, "cosine" or "linear"; flow matching has its own.
        width, blocks: size of the denoiser; None chooses it from the data (`DenoiserSpec.for_data`).
        dropout: share of features dropped in each block during training.
        steps: optimiser steps; None chooses them from the data (`default_steps`).
        batch_size: latents per step; a smaller data set is drawn from repeatedly.
        learning_rate: peak rate, after a warm-up of 5 % of the steps; falls to 0 as a cosine.
        weight_decay: AdamW's, on matrices only.
        ema_decay: decay of the weight average that is sampled; rises to this value over the first steps.
        latent_noise: deviation, in whitened units, of noise added to every training example.
        calibrate: whether samples are shifted and scaled per whitened dimension to the latents' mean and
            deviation (`prior.calibration`); a denoiser trained on few latents draws them some 8 % too close.
        held_out: share of the latents kept out of training for the reported held-out loss (0, the default,
            trains on all: a rare kind of instance may be there only once). Above the Gaussian prior's loss it
            says that the denoiser has begun to memorise; it does not choose the number of steps.
        label_dropout: share of the examples whose labels are dropped, all of them or (again) each alone, where there
            are labels: guidance needs to know both.
        seed: random seed of everything random here.
    """

    whitening: WhiteningMode = "pca"
    rank: int | None = None
    explained_variance: float = 0.95
    prediction: str = "v_prediction"
    num_train_timesteps: int = 1000
    schedule: str = "cosine"
    width: int | None = None
    blocks: int | None = None
    dropout: float = 0.0
    steps: int | None = None
    batch_size: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    ema_decay: float = 0.995
    latent_noise: float = 0.0
    calibrate: bool = True
    held_out: float = 0.0
    label_dropout: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.whitening not in MODES:
            raise MNIFError(f"`whitening` {self.whitening!r} is not known; choose one of {', '.join(MODES)}.")
        if self.prediction not in PREDICTIONS:
            raise MNIFError(f"`prediction` {self.prediction!r} is not known; choose one of {', '.join(PREDICTIONS)}.")
        if self.schedule not in SCHEDULES:
            raise MNIFError(f"`schedule` {self.schedule!r} is not known; choose one of {', '.join(SCHEDULES)}.")
        for name, most in _MOST.items():
            if getattr(self, name) is not None or name not in _CHOSEN:
                require_count(f"`{name}`", getattr(self, name), 2 if name == "num_train_timesteps" else 1, most)
        require_count("`seed`", self.seed, 0, 2**63 - 1)
        for name, largest in _LARGEST.items():
            above = name in ("learning_rate", "explained_variance")
            require_number(f"`{name}`", getattr(self, name), 0.0, largest, above)
        if not isinstance(self.calibrate, bool):
            raise MNIFError(f"`calibrate` {self.calibrate!r}, expected true or false.")
        for name in ("held_out", "dropout", "ema_decay", "label_dropout"):
            share = getattr(self, name)
            if not (is_number(share) and 0 <= share < 1):
                raise MNIFError(f"`{name}` {share}: expected a share in [0, 1).")

    def denoiser_spec(self, num_latents: int, dim: int) -> DenoiserSpec:
        """The denoiser's size for `num_latents` vectors of `dim` whitened dimensions."""
        chosen = DenoiserSpec.for_data(num_latents, dim)
        return DenoiserSpec(
            dim, self.width or chosen.width, self.blocks or chosen.blocks, chosen.time_features, self.dropout
        )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> PriorConfig:
        """The inverse of `to_dict`.

        Raises:
            MNIFError: an unknown key, as in a folder that another version wrote.
        """
        return from_description(cls, content, "prior settings", "train the prior again")


def default_steps(num_latents: int) -> int:
    """Optimiser steps for N latents: 3,000 at N = 128, growing as sqrt(N) up to N = 512 and slower beyond, within 500
    and 20,000.

    Steps trade two faults against each other. On a synthetic manifold (128 latents of 32 dimensions, two
    draws), 500, 1,500 and 3,000 steps put samples 2.2, 1.4 and 1.3 times as far from the manifold as fresh
    data are, and 1.07, .69 and .58 times as far from the nearest training latent: fewer steps blur, more
    steps copy. On 77 trees half as many steps left 31 of 100 samples in pieces instead of 18
    (docs/benchmarks.md). More latents take longer to copy and hold more to learn, and what a few hundred need twice
    as many steps for was not seen of thousands. The held-out loss is no guide:
    after 500 steps it was already above the Gaussian prior's, whose samples lie 3.5 times too far out.
    """
    few = 1 + min(1.0, 512 / num_latents)
    return int(min(20_000, max(500, round(1500 * few * math.sqrt(num_latents / 128)))))


@dataclass
class TrainingReport:
    """What came of a training run; losses are means over dimensions and all diffusion times.

    Attributes:
        steps: optimiser steps taken.
        train_loss: mean loss of the last tenth of the steps.
        held_out_loss: loss of the averaged weights on the held-out latents; None where all were trained on.
        gaussian_loss: loss of the Gaussian prior on the same held-out latents, the mark to beat.
    """

    steps: int
    train_loss: float
    held_out_loss: float | None = None
    gaussian_loss: float | None = None


def threads_for(spec: DenoiserSpec | FunctaSpec) -> contextlib.AbstractContextManager[None]:
    """Keep torch to one CPU thread while a small denoiser works, then put the number of threads back.

    Its products are too small to share: on a busy machine two threads waited for each other and took eleven
    times as long as one. It also makes results independent of the number of threads.
    """
    return contextlib.nullcontext() if spec.width > 512 else one_thread()


class Noising:
    """The forward process of training: brings noise to clean latents, and says what is to be predicted then.

    Args:
        prediction: as in `PriorConfig`.
        total: T.
        schedule: schedule of the noise.
    """

    def __init__(self, prediction: str, total: int, schedule: str = "cosine") -> None:
        self.prediction, self.total = prediction, total
        self.scheduler = make_scheduler("ddpm" if prediction != "flow" else "flow-heun", prediction, total, schedule)

    def loss(self, model: Any, clean: Tensor, noise: Tensor, times: Tensor, device: torch.device | str) -> Tensor:
        """Mean squared error of a model at `clean` and `noise` [B, K] and int64 times [B] from 0 to T - 1."""
        if self.prediction == "flow":
            times = times + 1  # as its sampler counts: at 0 nothing is left to remove
            noisy, target = torch.lerp(clean, noise, (times / self.total)[:, None]), noise - clean
        else:
            noisy = self.scheduler.add_noise(clean, noise, times)
            if self.prediction == "v_prediction":
                target = self.scheduler.get_velocity(clean, noise, times)
            else:
                target = clean if self.prediction == "sample" else noise
        return torch.nn.functional.mse_loss(model(noisy.to(device), times.to(device)), target.to(device))

    def gaussian(self, noisy: Tensor, times: Tensor) -> Tensor:
        """The exact model of a standard Gaussian, at noisy latents [B, K] and the times that `loss` hands on."""
        if self.prediction == "v_prediction":
            return torch.zeros_like(noisy)
        if self.prediction == "flow":
            share = (times / self.total)[:, None].to(noisy)
            return noisy * (2 * share - 1) / (share**2 + (1 - share) ** 2)
        alpha = self.scheduler.alphas_cumprod[times.cpu()].sqrt()[:, None].to(noisy)
        return noisy * (alpha if self.prediction == "sample" else (1 - alpha**2).sqrt())


class ExampleSource:
    """Draws training examples: random latents, with noise, brought back to the latents' deviations."""

    def __init__(self, whitened: Tensor, noise: float, generator: torch.Generator) -> None:
        self.points, self.noise, self.generator = whitened, noise, generator
        self.mean = whitened.mean(0)
        variance = whitened.var(0)
        self.gain = (variance / (variance + noise**2).clamp(min=1e-12)).sqrt()

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """[count, K] examples, and the rows of the latents that they are."""
        rows = torch.randint(len(self.points), (count,), generator=self.generator)
        examples = self.points[rows]
        if self.noise == 0:
            return examples, rows
        noisy = examples + self.noise * torch.randn(examples.shape, generator=self.generator)
        return self.mean + (noisy - self.mean) * self.gain, rows


@denormals_flushed()
def train_denoiser(
    whitened: Tensor,
    config: PriorConfig,
    on_step: OnStep | None = None,
    device: torch.device | str = "cpu",
    conditions: Conditions | None = None,
) -> tuple[Denoiser, TrainingReport]:
    """Train a denoiser and return its averaged weights.

    Args:
        whitened: [N, K], N >= 2, on the CPU.
        config: how; its seed fixes the result on one machine, whatever the state of torch's global generator.
        on_step: called after every step with (step, loss).
        device: where to train.
        conditions: what the denoiser is told of the N; it is a `ConditionalDenoiser` then.

    Returns:
        The denoiser (EMA weights, evaluation mode) and a `TrainingReport`.
    """
    from torch.optim.swa_utils import AveragedModel

    _require_room(config.denoiser_spec(len(whitened), whitened.shape[1]), config)
    generator = torch.Generator().manual_seed(config.seed)
    kept, left_out = _split(len(whitened), config.held_out, generator)
    train = whitened[kept]
    steps = config.steps or default_steps(len(train))
    source = ExampleSource(train, config.latent_noise, generator)
    told = _telling(conditions, kept, config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        denoiser = _new_denoiser(config.denoiser_spec(len(train), train.shape[1]), conditions).to(device)
        average = AveragedModel(denoiser, multi_avg_fn=_ramped_average(config.ema_decay))
        optimizer, schedule = _optimizer(denoiser, config, steps)
        noising = Noising(config.prediction, config.num_train_timesteps, config.schedule)
        recent: list[float] = []
        for step in range(steps):
            clean, rows = source.draw(config.batch_size)
            times = spread_times(len(clean), noising.total, generator)
            noise = torch.randn(clean.shape, generator=generator)
            loss = noising.loss(told(denoiser, rows), clean, noise, times, device)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            average.update_parameters(denoiser)
            value = loss.item()
            recent = [*recent[-(steps // 10) :], value]
            if on_step is not None:
                on_step(step, value)
    averaged = average.module.eval()
    report = TrainingReport(steps, sum(recent) / len(recent))
    if len(left_out):
        values = None if conditions is None else conditions.values[left_out]
        losses = held_out_losses(averaged, noising, whitened[left_out], device, values)
        report.held_out_loss, report.gaussian_loss = losses
    return averaged, report


def spread_times(count: int, total: int, generator: torch.Generator) -> Tensor:
    """Diffusion times int64 `[count]` from 0 to `total` - 1, one of each of `count` equal stretches: less variance in
    the gradient than independent draws."""
    order = torch.arange(count) + torch.rand(count, generator=generator)
    # One draw of 260,000 is so near to 1 that 127 and it are 128 in single precision.
    return (order / count * total).long().clamp_(max=total - 1)


def _new_denoiser(spec: DenoiserSpec, conditions: Conditions | None) -> Denoiser:
    if conditions is None:
        return Denoiser(spec)
    return ConditionalDenoiser(ConditionalSpec.of(spec, conditions.attributes))


def _telling(conditions: Conditions | None, kept: Tensor, config: PriorConfig) -> Callable[[Denoiser, Tensor], Any]:
    """What tells a denoiser the conditions of rows of the training latents, some of them dropped."""
    if conditions is None:
        return lambda denoiser, _: denoiser
    values, drop = conditions.values[kept], LabelDropout(conditions.dropout, stream(config.seed, "labels"))

    def told(denoiser: Any, rows: Tensor) -> Any:
        return partial(denoiser, conditions=drop(values[rows]).to(next(denoiser.parameters()).device))

    return told


def _require_room(spec: DenoiserSpec, config: PriorConfig) -> None:
    """Refuse a denoiser, or a batch, that the free memory cannot hold."""
    per_block = 2 * spec.width * (spec.width + spec.time_features + 3)
    weights = 4 * _COPIES * (spec.blocks * per_block + 2 * spec.dim * spec.width)
    batch = 4 * config.batch_size * (_ACTIVATIONS * spec.blocks * spec.width + 6 * spec.dim)
    require_memory(
        weights + batch,
        f"a denoiser of `width` {spec.width:,} and {spec.blocks:,} `blocks` in batches (`batch_size`) of "
        f"{config.batch_size:,}",
        "use smaller ones",
    )


def _split(number: int, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows to train on, and rows that are held out."""
    count = min(round(share * number), number - 2)
    order = torch.randperm(number, generator=generator)
    return order[count:], order[:count]


def _optimizer(denoiser: Denoiser, config: PriorConfig, steps: int) -> tuple[Any, Any]:
    matrices = [p for p in denoiser.parameters() if p.ndim > 1]
    vectors = [p for p in denoiser.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.99), fused=True)
    warm_up = max(1, steps // 20)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warmup_cosine(step, warm_up, steps, final_fraction=0.0)
    )


def _ramped_average(decay: float) -> Callable[[Any, Any, Any], None]:
    """EMA whose decay rises as (1 + n) / (10 + n), so that the random start is forgotten quickly."""

    @torch.no_grad()
    def update(averages: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
        n = int(count)
        share = 1 - min(decay, (1 + n) / (10 + n))
        for average, latest in zip(averages, current, strict=True):
            average.lerp_(latest, share)

    return update


@torch.no_grad()
def held_out_losses(
    model: Any, noising: Noising, held: Tensor, device: torch.device | str, conditions: Tensor | None = None
) -> tuple[float, float]:
    """Losses of the model and of the Gaussian prior on `held` [H, K], over the same times and noises; `conditions`
    [H, A] are what the model is told of them."""
    generator = torch.Generator().manual_seed(0)
    times = torch.arange(0, noising.total, max(1, noising.total // 64)).repeat_interleave(len(held))
    clean = held.repeat(len(times) // len(held), 1)
    noise = torch.randn(clean.shape, generator=generator)
    told = {} if conditions is None else {"conditions": conditions.repeat(len(times) // len(held), 1).to(device)}
    models = (partial(model, **told), noising.gaussian)
    own, gaussian = (noising.loss(kind, clean, noise, times, device) for kind in models)
    return own.item(), gaussian.item()
