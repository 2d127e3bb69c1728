"""A deterministic sampler as one table of numbers, for programs that do not have the sampler.

Every step of DDIM, DPM-Solver++ and Heun's method is linear in the latent and in what the denoiser has said. So
the latent after k evaluations is a weighted sum of the noise and the first k answers, with weights that depend on the
schedule alone. The scheduler itself finds them: it is run on unit vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mnif_nerf.errors import MNIFError

MOST_EVALUATIONS = 200  # the table grows with the square


@dataclass(frozen=True)
class LinearSteps:
    """A sampler.

    Attributes:
        times: `[S]`, diffusion times at which the denoiser is asked.
        table: `[S + 1, S + 1]`, below and on the diagonal: row k makes the latent that the denoiser is asked about
            after k answers, of the noise (column 0) and answer j (column j + 1); the last row makes the sample.
    """

    times: Tensor
    table: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, scheduler: Any, num_steps: int) -> LinearSteps:
        """The table of a scheduler of `mnif_nerf.priors.schedulers.make_scheduler`.

        Args:
            scheduler: a deterministic one; its state is changed.
            num_steps: evaluations, as in `reverse_process`.

        Raises:
            MNIFError: a sampler that adds noise, or more than `MOST_EVALUATIONS`.
        """
        kind = type(scheduler).__name__
        if kind == "DDPMScheduler":
            raise MNIFError("the sampler ddpm adds noise in every step, which no table can hold; use another.")
        if num_steps > MOST_EVALUATIONS:
            raise MNIFError(f"steps: {num_steps}, and a table holds at most {MOST_EVALUATIONS}; use fewer.")
        scheduler.set_timesteps((num_steps + 1) // 2 if kind == "FlowMatchHeunDiscreteScheduler" else num_steps)
        units = torch.eye(len(scheduler.timesteps) + 1)
        latent, rows = units[:1], [units[:1]]
        for step, time in enumerate(scheduler.timesteps):
            latent = scheduler.step(units[step + 1 : step + 2], time, latent).prev_sample
            rows.append(latent)
        return cls(scheduler.timesteps.float(), torch.cat(rows))
