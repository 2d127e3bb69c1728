"""Noise schedulers: diffusers' own, behind one factory that fixes the choices that must not drift.

Diffusion uses the cosine schedule (`squaredcos_cap_v2`, Nichol and Dhariwal 2021), or DDPM's linear one where
asked for, and never clips the prediction: diffusers' default `clip_sample=True` squashes latents into [-1, 1] without a
word. Flow matching (Lipman et al. 2023) has straight paths instead, `x_s = (1 - s) clean + s noise`; its denoiser
predicts their velocity, `noise - clean`, and has a sampler of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor

from mnif_nerf.errors import MNIFError, first_line
from mnif_nerf.limits import require_count

SamplerName = Literal["dpm-solver++", "ddim", "ddpm", "flow-heun"]
Prediction = Literal["v_prediction", "sample", "epsilon", "flow"]
SAMPLERS: tuple[str, ...] = get_args(SamplerName)
PREDICTIONS: tuple[str, ...] = get_args(Prediction)

# Steps at which an analytic Gaussian with deviations .1 to 2 came out within 4 % (see tests/test_priors.py).
DEFAULT_STEPS: dict[str, int] = {"dpm-solver++": 30, "ddim": 100, "ddpm": 1000, "flow-heun": 30}

# Measured on that Gaussian, worst error of a deviation at 30 steps of DPM-Solver++ 2M: steps uniform in
# log-SNR ("lu lambdas") 3 %, Karras 11 %, trailing 15 %, linspace 16 %; at 50 steps of DDIM: linspace 7 %,
# trailing 13 %, leading 18 %. The final-step options made no difference once the last sigma is zero. Flows at 29
# or 30 evaluations: Heun 5 %, Euler 14 %. DDPM is the same with any spacing (50 steps: 11 to 12 %); linspace is the
# authors'. Their DDIM has the spacing that is worst here, "leading"; imported priors alone follow it.
_OPTIONS: dict[str, dict[str, Any]] = {
    "dpm-solver++": {
        "algorithm_type": "dpmsolver++",
        "solver_order": 2,
        "use_lu_lambdas": True,
        "final_sigmas_type": "zero",
    },
    "ddim": {"clip_sample": False, "timestep_spacing": "linspace", "set_alpha_to_one": True},
    "ddpm": {"clip_sample": False, "variance_type": "fixed_large", "timestep_spacing": "linspace"},
    "flow-heun": {"shift": 1.0},
}
# Our names for diffusers' schedules. "linear" runs from 1e-4 to 0.02, as in DDPM (Ho et al. 2020).
_MOST_TIMESTEPS = 100_000
_BETA_SCHEDULES = {"cosine": "squaredcos_cap_v2", "linear": "linear"}
SCHEDULES: tuple[str, ...] = tuple(_BETA_SCHEDULES)


class Denoises(Protocol):
    """What a sampler asks of a denoiser."""

    def __call__(self, noisy: Tensor, timesteps: Tensor, /) -> Tensor:
        """`[n, K]`, of the scheduler's prediction type, at latents `[n, K]` and times `[n]`."""
        ...


def make_scheduler(
    name: str = "dpm-solver++",
    prediction: str = "v_prediction",
    num_train_timesteps: int = 1000,
    schedule: str = "cosine",
    ddim_spacing: str = "linspace",
) -> Any:
    """Make a diffusers scheduler.

    Args:
        name: "dpm-solver++" (multistep, second order), "ddim" (deterministic) or "ddpm" (ancestral, the
            authors' process when prediction is "sample" and every training step is taken); "flow-heun"
            (deterministic, second order) for the prediction "flow".
        prediction: what the denoiser returns: "v_prediction", "sample" (the clean latent), "epsilon" or "flow".
        num_train_timesteps: T, length of the noising process.
        schedule: "cosine" or "linear"; flow matching has its own and ignores this.
        ddim_spacing: which training steps DDIM takes, in diffusers' words: "linspace" (from the first to the last)
            or the authors' "leading" (multiples of T / number of steps).

    Raises:
        MNIFError: unknown name, prediction or schedule, two that do not go together, or T < 2.
    """
    check_sampler(name)
    if prediction not in PREDICTIONS:
        raise MNIFError(f"prediction: unknown type {prediction!r}; choose one of {', '.join(PREDICTIONS)}.")
    if num_train_timesteps < 2:
        raise MNIFError(f"num_train_timesteps: {num_train_timesteps}, expected at least 2.")
    if schedule not in _BETA_SCHEDULES:
        raise MNIFError(f"schedule: unknown name {schedule!r}; choose one of {', '.join(SCHEDULES)}.")
    fitting = [sampler for sampler in SAMPLERS if (sampler == "flow-heun") == (prediction == "flow")]
    if name not in fitting:
        raise MNIFError(
            f"sampler: {name} cannot draw from a prior trained with the prediction {prediction}; use "
            f"{' or '.join(fitting)}."
        )
    if name == "flow-heun":
        return _class_of(name)(num_train_timesteps=num_train_timesteps, **_OPTIONS[name])
    return _class_of(name)(
        num_train_timesteps=num_train_timesteps,
        beta_schedule=_BETA_SCHEDULES[schedule],
        prediction_type=prediction,
        **{**_OPTIONS[name], **({"timestep_spacing": ddim_spacing} if name == "ddim" else {})},
    )


def default_sampler(prediction: str) -> str:
    """The everyday sampler of priors with this prediction."""
    return "flow-heun" if prediction == "flow" else "dpm-solver++"


def check_sampler(name: str, extra: Sequence[str] = ()) -> None:
    """Raise an `MNIFError` unless `name` is a scheduler's name or one of `extra`."""
    known = (*SAMPLERS, *extra)
    if name not in known:
        raise MNIFError(f"sampler: unknown name {name!r}; choose one of {', '.join(known)}.")


def scheduler_config(scheduler: Any) -> dict[str, Any]:
    """The scheduler's settings as diffusers writes them to `scheduler_config.json`."""
    import json

    return json.loads(scheduler.to_json_string())


def scheduler_from_config(config: dict[str, Any], name: str | None = None, ddim_spacing: str = "linspace") -> Any:
    """Make a scheduler from the content of a `scheduler_config.json`.

    Args:
        config: as from `scheduler_config`.
        name: the sampler wanted; where it is another one than the file describes, only the prediction type, the
            noise schedule and the number of training timesteps are taken over.
        ddim_spacing: as in `make_scheduler`, where `name` is "ddim" and the file describes another.

    Raises:
        MNIFError: the file describes a scheduler that this package does not use, or none that works.
    """
    if not isinstance(config, dict):
        raise MNIFError(f"scheduler_config.json: holds {first_line(ValueError(repr(config)))}; train the prior again.")
    classes = {_class_of(sampler).__name__: sampler for sampler in SAMPLERS}
    described = classes.get(str(config.get("_class_name")))
    total = config.get("num_train_timesteps", 1000)
    require_count("scheduler_config.json: num_train_timesteps", total, 2, _MOST_TIMESTEPS)
    if described == "flow-heun":
        return make_scheduler(name or described, "flow", total)
    schedule = next((own for own, theirs in _BETA_SCHEDULES.items() if theirs == config.get("beta_schedule")), None)
    if described is None or schedule is None or "prediction_type" not in config:
        raise MNIFError(
            f"scheduler_config.json: a {config.get('_class_name')} with {config.get('beta_schedule')!r} betas, "
            f"expected one of {', '.join(classes)} with {' or '.join(_BETA_SCHEDULES.values())}; train the prior again."
        )
    if name is not None and name != described:
        return make_scheduler(name, config["prediction_type"], total, schedule, ddim_spacing)
    forced = {"clip_sample": False} if described in ("ddim", "ddpm") else {}
    try:
        scheduler = _class_of(described).from_config(config, thresholding=False, **forced)
        betas = torch.as_tensor(scheduler.betas)
        trial = _class_of(described).from_config(config, thresholding=False, **forced)  # a step changes its state
        trial.set_timesteps(2)
        trial.step(torch.zeros(1, 1), trial.timesteps[0], torch.zeros(1, 1))
        sound = betas.shape == (total,) and bool(((betas > 0) & (betas < 1)).all())
    except Exception as error:  # whatever a value of another type does to diffusers
        raise MNIFError(
            f"scheduler_config.json: not settings of a {config['_class_name']} ({first_line(error)}); train the prior "
            "again."
        ) from error
    if not sound:
        raise MNIFError(
            f"scheduler_config.json: its noise schedule is not {total} betas between 0 and 1; train the prior again."
        )
    return scheduler


def described_prediction(config: dict[str, Any]) -> str:
    """What the content of a `scheduler_config.json` says that the denoiser predicts."""
    flow = config.get("_class_name") == _class_of("flow-heun").__name__
    return "flow" if flow else str(config.get("prediction_type"))


def _class_of(name: str) -> Any:
    import diffusers

    classes = {
        "dpm-solver++": "DPMSolverMultistepScheduler",
        "ddim": "DDIMScheduler",
        "ddpm": "DDPMScheduler",
        "flow-heun": "FlowMatchHeunDiscreteScheduler",
    }
    return getattr(diffusers, classes[name])


def sample_streams(num_samples: int, seed: int, first: int = 0) -> list[torch.Generator]:
    """One CPU random generator per sample, seeded by (seed, sample index).

    Sample i of a seed is therefore the same whatever the number of samples, the batch size and the device.
    """
    import numpy as np

    streams = []
    for index in range(first, first + num_samples):
        state = np.random.SeedSequence((seed, index)).generate_state(2, np.uint32)
        streams.append(torch.Generator().manual_seed(int(state[0]) << 31 ^ int(state[1])))
    return streams


def draw_noise(streams: Sequence[torch.Generator], dim: int) -> Tensor:
    """One standard normal row per stream: [len(streams), dim], float32, on the CPU."""
    return torch.stack([torch.randn(dim, generator=stream) for stream in streams])


@torch.no_grad()
def reverse_process(
    denoiser: Denoises,
    scheduler: Any,
    num_steps: int,
    streams: Sequence[torch.Generator],
    dim: int,
    temperature: float = 1.0,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Run the reverse diffusion from noise to latents.

    Args:
        denoiser: (x [n, K], t [n]) -> [n, K], of the scheduler's prediction type.
        scheduler: from `make_scheduler`.
        num_steps: evaluations of the denoiser. Heun's method needs 2n - 1 of them for n steps, so that an even number
            is rounded down.
        streams: one random generator per sample (`sample_streams`); n = len(streams).
        dim: K.
        temperature: factor on the initial noise and on every noise the ancestral sampler adds; 1 is the model
            itself, smaller values draw nearer to the modes (truncation), 0 is deterministic.
        device: where the denoiser lives.

    Returns:
        [n, K] clean latents.
    """
    kind = type(scheduler).__name__
    ancestral = kind == "DDPMScheduler"
    scheduler.set_timesteps((num_steps + 1) // 2 if kind == "FlowMatchHeunDiscreteScheduler" else num_steps)
    x = draw_noise(streams, dim).to(device) * temperature
    for t in scheduler.timesteps:
        prediction = denoiser(x, t.to(device).expand(len(x)))
        if ancestral:
            x = _ancestral_step(scheduler, prediction, int(t), x, streams, temperature)
        else:
            x = scheduler.step(prediction, t, x).prev_sample
    return x


def _ancestral_step(
    scheduler: Any,
    prediction: Tensor,
    t: int,
    x: Tensor,
    streams: Sequence[torch.Generator],
    temperature: float,
) -> Tensor:
    if temperature == 1.0 or t == 0:
        return scheduler.step(prediction, t, x, generator=list(streams)).prev_sample
    # diffusers adds the noise itself and takes no factor for it: draw the same noise from a copy of the
    # streams, and take off what is too much. Its deviation is that of `variance_type="fixed_large"`.
    copies = [torch.Generator() for _ in streams]
    for copy, stream in zip(copies, streams, strict=True):
        copy.set_state(stream.get_state())
    stepped = scheduler.step(prediction, t, x, generator=list(streams)).prev_sample
    previous = int(scheduler.previous_timestep(t))
    kept = scheduler.alphas_cumprod[previous] if previous >= 0 else torch.tensor(1.0)
    deviation = float((1 - scheduler.alphas_cumprod[t] / kept).clamp(min=1e-20).sqrt())
    return stepped + (temperature - 1.0) * deviation * draw_noise(copies, x.shape[1]).to(x)
