"""The methods of `ns-train`: those of `mnif_nerf.pipelines.methods`, as nerfstudio's configurations.

nerfstudio loads this module in every one of its commands, so it only builds settings: it reads no file, fetches
nothing and must not fail. It is also where `--data` is taken out of the options
of those that load a run, and where errors that nobody catches learn to be sentences.
"""

from __future__ import annotations

import dataclasses
import sys
from importlib import import_module
from typing import Any

from nerfstudio.plugins.types import MethodSpecification

from mnif_nerf.models.errors import tell_in_commands
from mnif_nerf.models.moved_runs import take_data_option
from mnif_nerf.pipelines.methods import METHODS, Method
from mnif_nerf.pipelines.training.trainer import MNIFTrainerConfig

take_data_option(sys.argv)
tell_in_commands(sys.argv[0] if sys.argv else "")


def _configuration(settings: Any, **changed: Any) -> Any:
    """Settings as the class of nerfstudio's configurations that they name."""
    module, _, name = settings.config_class.rpartition(".")
    values = {entry.name: getattr(settings, entry.name) for entry in dataclasses.fields(settings)}
    return getattr(import_module(module), name)(**{**values, **changed})


def specification(method: Method) -> MethodSpecification:
    """A method as nerfstudio's plugins are."""
    run = method.new_run()
    data = run.pipeline.datamanager
    changed = {"dataparser": _dataparser(data.dataparser)} if hasattr(data, "dataparser") else {}
    config = MNIFTrainerConfig(
        method_name=run.method_name,
        max_num_iterations=run.max_num_iterations,
        steps_per_save=run.steps_per_save,
        steps_per_eval_batch=0,
        steps_per_eval_image=1000,
        steps_per_eval_all_images=run.steps_per_eval_all_images,
        mixed_precision=False,
        vis="viewer+tensorboard" if method.with_viewer else "tensorboard",
        pipeline=_configuration(run.pipeline, datamanager=_configuration(data, **changed)),
        optimizers=run.optimizers,
    )
    return MethodSpecification(config=config, description=method.description)


def _dataparser(source: Any) -> Any:
    from mnif_nerf.models.dataparser import SrnDataParserConfig

    return SrnDataParserConfig(**{field.name: getattr(source, field.name) for field in dataclasses.fields(source)})


def __getattr__(name: str) -> MethodSpecification:
    """`mnif_lite` is the method `mnif-lite`: what the entry points name."""
    method = METHODS.get(name.replace("_", "-"))
    if method is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    built = specification(method)
    globals()[name] = built
    return built
