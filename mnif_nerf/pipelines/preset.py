"""`--pipeline.preset auto`: sizes of field, latents and steps that follow the data and the time.

A preset starts from the small form of the modality and changes what its rungs (`Method.rungs`) say for this number of
instances and these steps. What the user has set stays. Only what was measured to help is a rung (docs/benchmarks.md,
"Presets").
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch

from mnif_nerf import modalities
from mnif_nerf.latents.optimizers import OptimizerGroups
from mnif_nerf.latents.stage1 import Stage1Trainer
from mnif_nerf.machine import default_device_type
from mnif_nerf.modalities.training import TrainingData
from mnif_nerf.pipelines.methods import get_method, method_of
from mnif_nerf.priors.training import default_steps

Place = tuple[str, ...]  # of a value in the settings of a run

_NOT_SIZES = {"data", "dataparser", "preset", "modality", "config_version", "machine"}  # a preset leaves them alone
_PRIOR_AND_REST = 0.3  # share of a run's time that is not its training steps, about
_OPTIMIZER = 1.15  # a step with the optimisers' work, over its gradient


def choose(settings: Any, minutes: float, say: Callable[[str], None]) -> dict[str, Any]:
    """Put the sizes that suit data and time into the settings of a run, and say which and why.

    Args:
        settings: `RunSettings`, or nerfstudio's configuration, which has the same names.
        minutes: of the run; 0 where it has the small form's number of steps, or the number that the user gave.
        say: prints a line.

    Returns:
        what was changed, by its place in the settings, for `restore`.

    Raises:
        MNIFError: no or unreadable data, or a setting out of range.
    """
    small = method_of(get_method(settings.method_name).modality)
    free = _untouched(settings)
    chosen = {path: value for path, value in _values(small.settings) if path in free}
    _put(settings, chosen)

    data, device = _open(settings)
    instances, steps = len(data.names), settings.max_num_iterations
    if minutes:
        steps = int((1 - _PRIOR_AND_REST) * 60 * minutes / _seconds_of_step(settings, data, device))
    reasons = []
    for rung in small.rungs:
        changes = {tuple(name.split(".")): value for name, value in rung.settings.items()}
        changes = {path: value for path, value in changes.items() if path in free}
        if changes and rung.suits(instances, steps):
            chosen.update(changes)
            reasons.append(rung.why)
    _put(settings, chosen)
    say(_told(settings, small.name, instances, steps, reasons))
    return {".".join(path): value for path, value in chosen.items()}


def restore(settings: Any, chosen: dict[str, Any]) -> None:
    """Put what `choose` had chosen into the settings of a run that goes on, but for what the user has set now."""
    free, values = _untouched(settings), {tuple(name.split(".")): value for name, value in chosen.items()}
    _put(settings, {path: value for path, value in values.items() if path in free})


def _open(settings: Any) -> tuple[TrainingData, torch.device]:
    """The data of a run, and the device that it trains on."""
    pipeline, machine = settings.pipeline, settings.machine
    if getattr(settings, "data", None) is not None:
        pipeline.datamanager.data = settings.data
    given = machine.device_type
    device = torch.device(default_device_type() if given == "auto" else given)
    training = modalities.get(pipeline.datamanager.modality).training
    return training.open(pipeline.datamanager, device, machine.seed), device


def _seconds_of_step(settings: Any, data: TrainingData, device: torch.device) -> float:
    """How long a step of these settings takes here."""
    pipeline, seed = settings.pipeline, settings.machine.seed
    model = modalities.get(pipeline.datamanager.modality).training.build(pipeline, data, None, seed).to(device)
    groups = OptimizerGroups.from_settings(model.parameter_groups(), settings.optimizers, 1)
    trainer = Stage1Trainer(model, data, groups, seed, pipeline.encode_batch)
    trainer.choose_threads(pipeline.threads, lambda _: None)
    if pipeline.cuda_graph:
        trainer.replay(lambda _: None)
    return _OPTIMIZER * trainer.seconds_of_step()


def _told(settings: Any, small: str, instances: int, steps: int, reasons: list[str]) -> str:
    model, data = settings.pipeline.model, settings.pipeline.datamanager
    sizes = [f"width {model.width}", f"{model.hidden_layers} hidden layers", f"{model.num_bases} bases"]
    sizes += [f"latents of {model.latent_dim}"]
    if hasattr(data, "points_per_instance"):
        points = f"{data.points_per_instance:,}" if data.points_per_instance else "all"
        sizes += [f"{points} points of each of {min(data.instances_per_step, instances)} instances a step"]
    prior = settings.pipeline.prior_steps or default_steps(instances)
    why = "; ".join(reasons) if reasons else f"the sizes of {small}, as nothing else was measured to be better"
    return (
        f"preset auto: {instances:,} instances, and time for about {steps:,} steps of {small}: {', '.join(sizes)}, at "
        f"most {prior:,} steps of the prior ({why})."
    )


# ------------------------------------------------------------------------------------------------------- settings


def _values(settings: Any, path: Place = ()) -> Iterator[tuple[Place, Any]]:
    """The sizes, rates and numbers of steps in the settings of a run, by their places."""
    if not path:
        yield ("max_num_iterations",), settings.max_num_iterations
        yield from _values(settings.pipeline, ("pipeline",))
        yield from _values(settings.optimizers, ("optimizers",))
    elif dataclasses.is_dataclass(settings):
        for entry in dataclasses.fields(settings):
            if entry.name not in _NOT_SIZES:
                yield from _values(getattr(settings, entry.name), (*path, entry.name))
    elif isinstance(settings, dict):
        for name, part in settings.items():
            yield from _values(part, (*path, name))
    else:
        yield path, settings


def _untouched(settings: Any) -> set[Place]:
    """The places where the settings of a run are still those of its method."""
    own = get_method(settings.method_name).settings
    return {path for path, value in _values(own) if _get(settings, path) == value}


def _get(settings: Any, path: Place) -> Any:
    for name in path:
        settings = settings[name] if isinstance(settings, dict) else getattr(settings, name)
    return settings


def _put(settings: Any, values: dict[Place, Any]) -> None:
    for path, value in values.items():
        owner = _get(settings, path[:-1])
        if isinstance(owner, dict):
            owner[path[-1]] = value
        else:
            setattr(owner, path[-1], value)
