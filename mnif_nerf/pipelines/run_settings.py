"""Settings of a whole run, as `mnif-train` takes them and `config.yml` holds them; nerfstudio is not needed for them.

A run folder made here is one that nerfstudio's commands can go on with: `config.yml` names its configuration classes,
which fill in whatever is not written.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml

from mnif_nerf.errors import MNIFError
from mnif_nerf.modalities.settings import PipelineSettings
from mnif_nerf.saved_settings import SavedSettings

_OBJECT = "tag:yaml.org,2002:python/object:"
_TRAINER_CONFIG = "mnif_nerf.pipelines.training.trainer.MNIFTrainerConfig"


@dataclass
class MachineSettings:
    """Where the run takes place."""

    seed: int = 42
    """Seed of everything that is random."""
    num_devices: int = 1
    """Devices of this machine to train on, one process each; where torchrun has started the processes, their number.
    Each process takes as many instances per step as the settings say."""
    device_type: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to train on; "auto" takes CUDA where it is usable."""


@dataclass
class LoggingSettings:
    """What is reported while training."""

    steps_per_log: int = 100
    """Steps between two reports."""


@dataclass
class RunSettings(SavedSettings):
    """One training run; every name means what it means to `ns-train`."""

    config_class: ClassVar[str] = _TRAINER_CONFIG

    method_name: str = ""
    """Name of the method."""
    data: Path | None = None
    """Folder of the data."""
    output_dir: Path = Path("outputs")
    """Where runs are kept: <output_dir>/<experiment_name>/<method_name>/<timestamp>."""
    experiment_name: str | None = None
    """Name of the experiment; that of the data folder when left out."""
    timestamp: str = "{timestamp}"
    """Name of the run; the time of its start when left out."""
    machine: MachineSettings = field(default_factory=MachineSettings)
    """Seed and device."""
    logging: LoggingSettings = field(default_factory=LoggingSettings)
    """Reports."""
    pipeline: PipelineSettings = field(default_factory=PipelineSettings)
    """Data, field, latents and prior."""
    optimizers: dict[str, Any] = field(default_factory=dict)
    """Optimisers and their schedules, by the name of what they optimise."""
    vis: Literal["tensorboard", "none"] = "tensorboard"
    """Whether losses and metrics are written for TensorBoard too, where that is installed."""
    relative_model_dir: Path = Path("nerfstudio_models")
    """Folder of the checkpoints within the run."""
    load_scheduler: bool = True
    """Whether a resumed run goes on with its learning-rate schedules."""
    steps_per_save: int = 2000
    """Steps between two checkpoints."""
    steps_per_eval_all_images: int = 2000
    """Steps between two evaluations."""
    max_num_iterations: int = 16_000
    """Length of the run in steps, those before a resume included."""
    minutes: float = 0.0
    """Minutes that the whole run may take, evaluations and latent prior included; they choose the number of steps on
    this machine. 0 takes `max_num_iterations`."""
    save_only_latest_checkpoint: bool = True
    """Whether older checkpoints are removed."""
    load_dir: Path | None = None
    """Folder of checkpoints of a run to go on with."""
    load_step: int | None = None
    """Step of the checkpoint in it; the latest when left out."""
    load_checkpoint: Path | None = None
    """Checkpoint file to go on with."""
    load_config: Path | None = None
    """A run's config.yml, whose settings replace all others."""

    def run_folder(self) -> Path:
        """The folder of the run; a name and a time are chosen now where they were left out."""
        if self.timestamp == "{timestamp}":
            self.timestamp = datetime.now().strftime("%Y-%m-%d_%H%M%S")
        if self.experiment_name is None:
            data = self.pipeline.datamanager.data
            self.experiment_name = "unnamed" if data is None else (data.parent if data.is_file() else data).stem
        return self.output_dir / self.experiment_name / self.method_name / self.timestamp

    def checkpoint_folder(self) -> Path:
        """Where its checkpoints go."""
        return self.run_folder() / self.relative_model_dir


class _Dumper(yaml.SafeDumper):
    """Writes settings as nerfstudio's `yaml.dump` would: objects by class and attributes."""


def _represent(dumper: yaml.SafeDumper, value: Any) -> yaml.Node:
    if isinstance(value, Path):
        return dumper.represent_sequence("tag:yaml.org,2002:python/object/apply:pathlib.PosixPath", list(value.parts))
    if isinstance(value, tuple):
        return dumper.represent_sequence("tag:yaml.org,2002:python/tuple", list(value))
    attributes = {entry.name: getattr(value, entry.name) for entry in dataclasses.fields(value)}
    if not isinstance(value, SavedSettings):
        return dumper.represent_mapping("tag:yaml.org,2002:map", attributes)
    kind = getattr(value, "config_class", "") or f"{type(value).__module__}.{type(value).__qualname__}"
    return dumper.represent_mapping(_OBJECT + kind, attributes)


_Dumper.add_multi_representer(Path, _represent)
_Dumper.add_representer(tuple, _represent)
_Dumper.add_multi_representer(SavedSettings, _represent)
_Dumper.add_multi_representer(MachineSettings, _represent)
_Dumper.add_multi_representer(LoggingSettings, _represent)


def dump_settings(settings: RunSettings) -> str:
    """The text of `config.yml`."""
    kept = dataclasses.replace(settings, load_dir=None, load_step=None, load_checkpoint=None, load_config=None)
    return yaml.dump(kept, Dumper=_Dumper, sort_keys=True)


class _Loader(yaml.SafeLoader):
    """Reads Python objects as plain values, and runs nothing."""


def _construct(loader: yaml.SafeLoader, tag: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        items = loader.construct_sequence(node, deep=True)
        if "pathlib" in tag:
            return Path(*(str(item) for item in items))
        return tuple(items) if tag == "tuple" else items
    return None if tag.startswith("name:") else loader.construct_scalar(node)  # type: ignore[arg-type]


_Loader.add_multi_constructor("tag:yaml.org,2002:python/", _construct)


def read_config(path: Path) -> dict[str, Any]:
    """A run's `config.yml` as nested dictionaries.

    Raises:
        MNIFError: it is missing or not readable.
    """
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)  # a safe loader: see above
    except OSError as error:
        raise MNIFError(f"{path}: cannot be read ({error.strerror}); give a run's config.yml.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise MNIFError(f"{path}: not a readable config.yml ({error}).") from None
    if not isinstance(content, dict) or "method_name" not in content:
        raise MNIFError(f"{path}: not a run's config.yml; give the one that training wrote.")
    return content


def update_settings(settings: Any, values: dict[str, Any]) -> None:
    """Take the values of a `config.yml` into settings of the same method, wherever the settings have that name.

    What only nerfstudio knows (its viewer, its writers) has no counterpart here and is left out.

    Args:
        settings: a settings dataclass, changed in place.
        values: what `read_config` returned.
    """
    for entry in dataclasses.fields(settings):
        if entry.name not in values:
            continue
        current, value = getattr(settings, entry.name), values[entry.name]
        if dataclasses.is_dataclass(current) and isinstance(value, dict):
            update_settings(current, value)
        elif isinstance(current, dict) and isinstance(value, dict):
            for name, part in value.items():
                for role, one in part.items() if name in current else ():
                    update_settings(current[name][role], one)
        elif isinstance(current, tuple) and isinstance(value, list):
            setattr(settings, entry.name, tuple(value))
        else:
            setattr(settings, entry.name, value)
