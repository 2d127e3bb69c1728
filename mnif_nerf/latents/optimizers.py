"""The optimisers of stage 1: one for each group of parameters, whose gradients differ by orders of magnitude."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


@dataclass
class OptimizerGroups:
    """Optimisers of a run by the name of their parameters.

    Attributes:
        parameters: the parameters of every group.
        optimizers: one each.
        schedules: at most one each, stepped after every training step.
        max_norms: at which the gradient of a group is clipped; None for no limit.
        following: the settings of those schedules that end with the run.
    """

    parameters: dict[str, list[Parameter]]
    optimizers: dict[str, Optimizer]
    schedules: dict[str, LambdaLR]
    max_norms: dict[str, float | None]
    following: list[Any] = field(default_factory=list)

    @classmethod
    def from_settings(
        cls, groups: Mapping[str, list[Parameter]], settings: Mapping[str, Mapping[str, Any]], steps: int
    ) -> OptimizerGroups:
        """Build them.

        Args:
            groups: parameters by name.
            settings: "optimizer" and "scheduler" (or None, for a constant rate) of every name.
            steps: length of the run, at which schedules of length 0 end.
        """
        built = cls({}, {}, {}, {})
        for name, parameters in groups.items():
            optimizer, scheduler = settings[name]["optimizer"], settings[name]["scheduler"]
            built.parameters[name] = list(parameters)
            built.optimizers[name] = optimizer.setup(params=built.parameters[name])
            built.max_norms[name] = optimizer.max_norm
            if scheduler is not None:
                length = dataclasses.replace(scheduler, max_steps=scheduler.max_steps or steps)
                built.schedules[name] = length.get_scheduler(built.optimizers[name], optimizer.lr)
                if not scheduler.max_steps:
                    built.following.append(length)
        return built

    def set_length(self, steps: int) -> None:
        """Let the schedules of length 0 end at another step, from the next step on."""
        for length in self.following:
            length.max_steps = steps

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for parameters in self.parameters.values():
            for parameter in parameters:
                parameter.grad = None

    def step(self) -> None:
        """Clip, and take one step of every group that has a gradient; then one of every schedule."""
        self.update()
        self.advance()

    def update(self) -> None:
        """Clip, and take one step of every group that has a gradient."""
        for name, optimizer in self.optimizers.items():
            limit, parameters = self.max_norms[name], self.parameters[name]
            if limit is not None:
                torch.nn.utils.clip_grad_norm_(parameters, limit)
            if any(parameter.grad is not None for parameter in parameters):
                optimizer.step()

    def advance(self) -> None:
        """Take one step of every schedule."""
        for schedule in self.schedules.values():
            schedule.step()

    def rates(self) -> dict[str, float]:
        """The learning rate of every group's next step."""
        return {name: optimizer.param_groups[0]["lr"] for name, optimizer in self.optimizers.items()}

    @contextlib.contextmanager
    def rates_from(self, rates: Mapping[str, Tensor]) -> Iterator[None]:
        """Within the block, learning rates are read from tensors on the device, so that a step can be recorded."""
        groups = [(rates[name], group) for name, part in self.optimizers.items() for group in part.param_groups]
        kept = [{key: group[key] for key in ("lr", "capturable") if key in group} for _, group in groups]
        recorded = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
        for rate, group in groups:
            group["lr"] = rate
            if "capturable" in group:
                group["capturable"] = recorded
        try:
            yield
        finally:
            for (_, group), before in zip(groups, kept):
                group.update(before)

    def tensors(self) -> dict[str, list[Tensor]]:
        """Parameters and what the optimisers know of them, by group and name."""
        found: dict[str, list[Tensor]] = {name: list(each) for name, each in self.parameters.items()}
        for name, optimizer in self.optimizers.items():
            for state in optimizer.state.values():
                for key, value in state.items():
                    if isinstance(value, Tensor):
                        found.setdefault(f"{name}, {key}", []).append(value)
        return found

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """States under "optimizers" and "schedulers", as nerfstudio's checkpoints hold them."""
        return {
            "optimizers": {name: part.state_dict() for name, part in self.optimizers.items()},
            "schedulers": {name: part.state_dict() for name, part in self.schedules.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any], with_schedules: bool = True) -> None:
        """Read back `state_dict`."""
        for name, part in state["optimizers"].items():
            self.optimizers[name].load_state_dict(part)
        if with_schedules:
            for name, part in state.get("schedulers", {}).items():
                self.schedules[name].load_state_dict(part)
