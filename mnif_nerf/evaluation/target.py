"""What is evaluated: a trained model, and the data it was trained on and is compared with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mnif_nerf.data.sampling.views import HELD_OUT_SPLITS, USUAL_HELDOUT_VIEWS, evenly_spaced
from mnif_nerf.data.stores.grid_store import GridStore, grid_splits, open_grid_store
from mnif_nerf.data.stores.scene_store import PackedStore, open_store
from mnif_nerf.data.stores.surface_store import SurfaceStore, open_surface_store
from mnif_nerf.errors import MNIFError
from mnif_nerf.modalities import Modality
from mnif_nerf.pipelines.generation import MNIFPipeline
from mnif_nerf.pipelines.model_folder import locate_model
from mnif_nerf.pipelines.run_data import missing_data, place_of_data

InstanceStore = GridStore | SurfaceStore
"""A split of data that are whole instances."""


@dataclass(frozen=True)
class Instances:
    """Some instances of some splits, in order: `[K]` (store, row in it, name)."""

    stores: tuple[InstanceStore, ...]
    rows: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def names(self) -> list[str]:
        """ "split/name" of each."""
        return [f"{self.stores[s].split}/{self.stores[s].names[row]}" for s, row in self.rows]

    def value(self, k: int) -> Any:
        """One of them: voxels bool `[G, G, G]`, a picture uint8 `[H, H, C]`, or `SurfacePoints`."""
        store, row = self.rows[k]
        return self.stores[store].values(row)

    def each(self) -> Iterator[Any]:
        """All of them, one after the other."""
        return (self.value(k) for k in range(len(self)))

    def values(self) -> list[Any]:
        """All of them together."""
        return list(self.each())


class ModelAndData:
    """A model and its data.

    Args:
        pipe: the model.
        data: the data folder.
        heldout_views: views of every scene that training held out (radiance); None takes what the model folder says,
            and `USUAL_HELDOUT_VIEWS` where it does not.

    Attributes:
        notes: sentences for the report.

    Raises:
        MNIFError: data of another modality, resolution or number of channels, a model without its training latents.
    """

    def __init__(self, pipe: MNIFPipeline, data: Path | str, heldout_views: int | None = None) -> None:
        self.pipe, self.data = pipe, Path(data)
        self.notes: list[str] = []
        known = pipe.model.heldout_views if heldout_views is None else heldout_views
        self.heldout_views = USUAL_HELDOUT_VIEWS if known is None else known
        if known is None and not self.kind.by_instance and not any(name in self.splits for name in HELD_OUT_SPLITS):
            self.notes.append(
                f"The model folder does not say how many views training held out; the usual {USUAL_HELDOUT_VIEWS} of "
                "every scene were taken. If training held out others, the scores of held-out views are too high."
            )
        if not pipe.names:
            raise MNIFError("this model came without the latents of training instances, so nothing can be compared.")
        if self.kind.by_instance:
            self._check_instances(self.instances("train"))
        else:
            self._check_names(self.scenes("train").names)

    @property
    def kind(self) -> Modality:
        """The modality of both."""
        return self.pipe.model.kind

    @cached_property
    def splits(self) -> tuple[str, ...]:
        """Splits that the data has, of this model's modality."""
        return self.kind.splits(self.data)

    def instances(self, split: str, solids: bool = False) -> InstanceStore:
        """A split of points of meshes, or of the model's own grids, at its resolution where it has one.

        Args:
            split: its name.
            solids: where instances are solid, which of radiance fields lies beside the pictures, as cells.
        """
        if self.kind.has_points:
            return open_surface_store(self.data, split)
        grid: dict[str, Any] = self.pipe.model.grid or {}
        own = self.kind.name if self.kind.is_grid else None
        name = self.kind.solids if solids else own
        if name is None:
            raise MNIFError(f"{self.data}: a model of {self.kind.nouns} is not compared by grids of cells.")
        channels = grid.get("channels") if name == own else None
        size = tuple(grid["shape"]) if name == own and "shape" in grid else grid.get("resolution")
        return open_grid_store(self.data, split, name, size, channels)

    def scenes(self, split: str) -> PackedStore:
        """A split of pictures with cameras."""
        return open_store(self.data, split, reading=self.pipe.model.reading)

    @cached_property
    def stored_surface_points(self) -> int | None:
        """Points on the surface of each instance, where the data are points of meshes; else None."""
        store = self.instances("train") if self.kind.has_points else None
        return store.counts.surface if isinstance(store, SurfaceStore) else None

    @cached_property
    def has_solids(self) -> bool:
        """Whether the data says which cells instances fill; beside the pictures of radiance fields, it may."""
        if self.kind.solids is None:
            return self.kind.has_points
        try:
            return "train" in grid_splits(self.data, self.kind.solids)
        except MNIFError:
            return False

    def training(self, count: int, solids: bool = False) -> Instances:
        """`count` training instances, spread evenly, in the model's order of names."""
        store = self.instances("train", solids)
        rows = [store.names.index(self.pipe.names[int(i)]) for i in self.training_rows(count)]
        return Instances((store,), tuple((0, row) for row in rows))

    def training_rows(self, count: int) -> np.ndarray:
        """Rows of the latents of `count` training instances, spread evenly."""
        return evenly_spaced(len(self.pipe.names), count)

    @property
    def splits_of_solids(self) -> tuple[str, ...]:
        """Splits that say where instances are solid."""
        if self.kind.has_points:
            return self.splits
        return tuple(grid_splits(self.data, self.kind.solids)) if self.kind.solids and self.has_solids else ()

    def references(self, splits: tuple[str, ...], most: int, solids: bool = False) -> Instances:
        """Instances that samples are compared with: of `splits` as far as they are there, `most` at the most.

        Raises:
            MNIFError: none of the splits is there.
        """
        present = self.splits_of_solids if solids else self.splits
        stores = tuple(self.instances(name, solids) for name in self.choose_splits(splits, present))
        rows = [(s, row) for s, store in enumerate(stores) for row in range(store.num_instances)]
        return Instances(stores, tuple(rows[int(i)] for i in evenly_spaced(len(rows), most)))

    def require_splits(self, wanted: tuple[str, ...]) -> None:
        """Refuse a split that the data lacks, before any long work.

        Raises:
            MNIFError: with the first.
        """
        present = sorted({*self.splits, *self.splits_of_solids})
        for name in wanted:
            if name not in present:
                raise MNIFError(f"`references` {name}: {self.data} has no such split; use {' or '.join(present)}.")

    def choose_splits(self, wanted: tuple[str, ...], present: tuple[str, ...] | None = None) -> list[str]:
        """Those of `wanted` that are there.

        Args:
            wanted: names of splits.
            present: splits to choose from; by default the data's own.

        Raises:
            MNIFError: none of them is there.
        """
        present = self.splits if present is None else present
        found = [name for name in wanted if name in present]
        if not found:
            raise MNIFError(
                f"{self.data}: has none of the splits {', '.join(wanted)} to compare samples with; name one that is "
                f"there with `references` ({', '.join(present)})."
            )
        return found

    def _check_names(self, names: tuple[str, ...]) -> None:
        missing = sorted(set(self.pipe.names) - set(names))
        if missing:
            raise MNIFError(
                f"{self.data}: {len(missing)} of the {len(self.pipe.names)} instances the model was trained on are not "
                f"in its train split (such as {missing[0]}); give the data of the training run with `data`."
            )

    def _check_instances(self, store: InstanceStore) -> None:
        grid: dict[str, Any] = self.pipe.model.grid or {}
        found_of: dict[str, Any] = {"channels": store.channels}
        if isinstance(store, GridStore):
            found_of |= {"resolution": store.resolution, "shape": list(store.shape)}
        else:
            grid = {"channels": self.pipe.model.field.spec.out_features}
        for name, found in found_of.items():
            if name in grid and grid[name] != found:
                raise MNIFError(
                    f"{self.data}: its {self.kind.nouns} have {name} {found}, the model was trained on {grid[name]}; "
                    "give the data of the training run with `data`."
                )
        self._check_names(store.names)


def load_target(load_config: Path | str, data: Path | str | None, device: str | None = None) -> ModelAndData:
    """A trained run with its data.

    Args:
        load_config: the run's config.yml, the run folder or a model folder.
        data: the data folder; None takes what config.yml names.
        device: as in `MNIFPipeline.from_pretrained`.

    Raises:
        MNIFError: no model, no data, or data that does not belong to the model.
    """
    pipe = MNIFPipeline.from_pretrained(load_config, device)
    heldout = pipe.model.heldout_views
    if heldout is None:  # model folders written before version 0.2 do not say
        config = find_config(load_config)
        heldout = None if config is None else _heldout_of(config)
    return ModelAndData(pipe, find_data(load_config) if data is None else data, heldout)


def find_data(load_config: Path | str) -> Path:
    """The data folder that a run's config.yml names.

    Raises:
        MNIFError: there is no config.yml, or the folder is not there.
    """
    config = find_config(load_config)
    if config is None:
        raise MNIFError(f"{load_config}: no config.yml beside the model says where its data is; give it with `data`.")
    content = _read_config(config)
    named = _data_of(content)
    if named is None:
        raise MNIFError(f"{config}: does not say where the data is; give it with `data`.")
    parts = [_as_path(content.get(name)) for name in ("output_dir", "experiment_name", "method_name", "timestamp")]
    run = None if None in parts else Path(*(part for part in parts if part is not None))
    place = place_of_data(named, config, run)
    if place is None:
        raise MNIFError(missing_data(named, config))
    return place


def find_config(load_config: Path | str) -> Path | None:
    """The config.yml of a run, given as itself, the run folder or a model folder; None where there is none."""
    path = Path(load_config)
    candidates = [path] if path.suffix == ".yml" else []
    if path.exists():
        model = locate_model(path)
        candidates += [model.parent / "config.yml", model / "config.yml"]
    return next((place for place in candidates if place.is_file()), None)


def _heldout_of(config: Path) -> int | None:
    content: Any = _read_config(config)
    for part in ("pipeline", "datamanager", "dataparser", "heldout_views_per_scene"):
        content = content.get(part) if isinstance(content, dict) else None
    return content if isinstance(content, int) else None


def _read_config(config: Path) -> dict[str, Any]:
    """The content of a nerfstudio config.yml, read without making its Python objects."""
    import yaml

    class Loader(yaml.SafeLoader):
        """Reads nerfstudio's object tags as the plain values under them."""

    def plain(loader: yaml.SafeLoader, _: str, node: yaml.Node) -> Any:
        if isinstance(node, yaml.MappingNode):
            return loader.construct_mapping(node, deep=True)
        if isinstance(node, yaml.SequenceNode):
            return loader.construct_sequence(node, deep=True)
        return loader.construct_scalar(node)  # type: ignore[arg-type]

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", plain)
    try:
        content: Any = yaml.load(config.read_text(encoding="utf-8"), Loader)
    except (yaml.YAMLError, OSError, ValueError, RecursionError, TypeError) as error:
        raise MNIFError(f"{config}: not a readable config.yml ({error}); give the data with `data`.") from None
    if not isinstance(content, dict):
        raise MNIFError(f"{config}: not the config.yml of a run; give the data with `data`.")
    return content


def _data_of(content: dict[str, Any]) -> Path | None:
    """The data folder that the content of a config.yml names."""
    pipeline = _mapping(content.get("pipeline"))
    manager = _mapping(pipeline.get("datamanager"))
    parser = _mapping(manager.get("dataparser"))
    found = map(_as_path, (content.get("data"), manager.get("data"), parser.get("data")))
    return next((path for path in found if path is not None), None)


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _as_path(value: Any) -> Path | None:
    """A path as config.yml has it: a text, or a list of its parts."""
    parts = value if isinstance(value, list) else [value]
    return Path(*parts) if value and all(isinstance(part, str) for part in parts) else None
