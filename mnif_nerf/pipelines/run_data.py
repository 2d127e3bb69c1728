"""Where the data of a run is now, and what is known of it where it is not there: runs and data are moved."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from mnif_nerf.errors import MNIFError
from mnif_nerf.labels import Labels
from mnif_nerf.modalities.training import TrainingData
from mnif_nerf.pipelines.model_folder import StoredModel, read_model


def place_of_data(named: Path, config: Path, run: Path | None = None) -> Path | None:
    """Where a run's data is: at its old place as seen from the run, which may have been moved with it, or as named.

    Args:
        named: the folder as config.yml names it; a relative one was seen from the working directory of the training.
        config: the run's config.yml.
        run: the run's folder as it was named then, seen from the same directory; None where that is not known.

    Returns:
        None where it is not to be found.
    """
    here = here_of(config)
    places = [named, here / named]
    if run is not None and run.is_absolute() == named.is_absolute():
        places.insert(0, Path(os.path.normpath(here / os.path.relpath(named, run))))
    return next((place for place in places if is_data(place)), None)


def here_of(config: Path) -> Path:
    """The folder of a config.yml, from the root."""
    return Path(os.path.abspath(config)).parent


def is_data(place: Path) -> bool:
    """Whether a folder or a file is there, or folders whose names begin with it (`cars` for `cars_train`)."""
    if os.path.exists(place):
        return True
    try:
        return any(entry.name.startswith(f"{place.name}_") for entry in os.scandir(place.parent))
    except OSError:
        return False


def missing_data(named: Path, config: Path) -> str:
    """The sentence that says that a run's data is not there."""
    return f"{named}: no such folder (named by {config}); give the data with `data`."


class StoredData(TrainingData):
    """What a model folder knows of data that is not there; whatever else is asked of it says how to name the data.

    Args:
        settings: of the data.
        model: the model folder.
        why: the sentence that says what is missing.

    Raises:
        MNIFError: there is no model folder, or it is damaged.
    """

    def __init__(self, settings: Any, model: Path, why: str) -> None:
        super().__init__(settings)
        self.why = why
        self.model: StoredModel = read_model(model, with_prior=False)

    @property
    def names(self) -> tuple[str, ...]:
        """See `TrainingData`."""
        return self.model.names

    @cached_property
    def labels(self) -> Labels | None:
        """See `TrainingData`."""
        return self.model.labels

    def instance_files(self) -> dict[str, Path | None]:
        """See `TrainingData`."""
        return dict.fromkeys(self.names)

    def grid(self) -> dict[str, Any]:
        """See `TrainingData`."""
        return self.model.grid or {"channels": self.model.field.spec.out_features}

    def facts(self) -> dict[str, Any]:
        """See `TrainingData`."""
        names = ("modality", "grid", "camera", "half_extent")
        return {name: getattr(self.model, name) for name in names}

    def bounds(self) -> Tensor | None:
        """See `TrainingData`."""
        return self.model.cells

    def stored(self) -> dict[str, Any]:
        """See `TrainingData`."""
        return {}

    def draw(self, step: int) -> NoReturn:
        """There is nothing to draw from."""
        raise MNIFError(self.why)

    def device_draw(self) -> NoReturn:
        """There is nothing to draw from."""
        raise MNIFError(self.why)

    def fixed(self, instances: torch.Tensor) -> NoReturn:
        """There is nothing to draw from."""
        raise MNIFError(self.why)

    def drawn_per_step(self) -> NoReturn:
        """There is nothing to draw from."""
        raise MNIFError(self.why)

    def __getattr__(self, name: str) -> NoReturn:
        """Stores, views, splits: whatever only data has."""
        if name.startswith("__") or "why" not in self.__dict__:
            raise AttributeError(name)
        raise MNIFError(self.why)
