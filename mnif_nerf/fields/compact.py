"""The collapsed field: one plain small network, all that viewer, renderer and exporters ever see."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mnif_nerf.errors import MNIFError, require
from mnif_nerf.fields import families
from mnif_nerf.fields.evaluate import evaluate
from mnif_nerf.fields.heads import color_from_raw, density_from_raw
from mnif_nerf.fields.network import NetworkForm, join_flat
from mnif_nerf.files import atomic_file, check_keys, content_errors
from mnif_nerf.tensor_files import read_tensors, write_tensors

_FORMAT = "mnif_nerf.compact_field"


class CompactField(nn.Module):
    """One network with fixed weights; its family's constants (a SIREN's w0) are already multiplied into them.

    Args:
        weights: one `[out, in]` per layer.
        biases: one `[out]` per layer.
        final_sine: whether the output layer is a sine too.
        head: what the raw values mean, see `mnif_nerf.fields.heads`.
        family: which activations, see `mnif_nerf.fields.families`.
        w0: the sine frequency, for families that cannot multiply all of it into the weights ("finer").

    Raises:
        MNIFError: a family that this version does not know.
    """

    def __init__(
        self,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor],
        final_sine: bool = False,
        head: str = "radiance",
        family: str = "siren",
        w0: float = 30.0,
    ) -> None:
        super().__init__()
        families.get(family)
        self.weights = nn.ParameterList(nn.Parameter(w.detach().clone(), requires_grad=False) for w in weights)
        self.biases = nn.ParameterList(nn.Parameter(b.detach().clone(), requires_grad=False) for b in biases)
        self.head = head
        self.form = NetworkForm(tuple((w.shape[0], w.shape[1]) for w in weights), final_sine, family, w0)

    @property
    def final_sine(self) -> bool:
        """Whether the output layer is a sine too."""
        return self.form.final_sine

    @property
    def about(self) -> dict[str, Any]:
        """What `from_tensors` must be told beside the tensors, JSON-ready."""
        about = {"layers": len(self.weights), "final_sine": self.final_sine, "head": self.head}
        return {**about, "family": self.form.family, "w0": self.form.w0}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], about: Mapping[str, Any], prefix: str = "") -> CompactField:
        """The field of a `state_dict` (whose names may have a prefix) and `about`.

        Raises:
            KeyError, ValueError: something is missing, or does not fit.
            MNIFError: a family that this version does not know.
        """
        layers = range(int(about["layers"]))
        weights = [tensors[f"{prefix}weights.{layer}"].float() for layer in layers]
        biases = [tensors[f"{prefix}biases.{layer}"].float() for layer in layers]
        flat = any(weight.ndim != 2 or 0 in weight.shape for weight in weights) or not weights
        if flat or [bias.shape for bias in biases] != [weight.shape[:1] for weight in weights]:
            raise ValueError("its layers do not fit one another")
        if any(after.shape[1] != before.shape[0] for before, after in itertools.pairwise(weights)):
            raise ValueError("its layers do not fit one another")
        # Files of version 0.1.0 hold radiance fields and do not say so; those before families hold SIRENs.
        head, family = about.get("head", "radiance"), about.get("family", "siren")
        return cls(weights, biases, about["final_sine"], head, family, float(about.get("w0", 30.0)))

    def evaluate(self, points: Tensor) -> Tensor:
        """Raw values `[out, N]` at feature-major points `[in, N]`."""
        flat = [join_flat(w.unsqueeze(0), b.unsqueeze(0)) for w, b in zip(self.weights, self.biases)]
        return evaluate(self.form, flat, points.unsqueeze(0))[0]

    def forward(self, points: Tensor) -> Tensor:
        """Raw values `[N, out]` at points `[N, in]`."""
        return self.evaluate(points.T).T

    def radiance(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Colours `[N, 3]` and densities `[N]` >= 0 (1/world unit) at points `[N, 3]`.

        Colours lie in [0, 1] unless the head is "radiance-authors", whose composited pixels have to be clamped.
        """
        raw = self.evaluate(points.T)
        return color_from_raw(raw[:3], self.head).T, density_from_raw(raw[3], self.head)

    def density(self, points: Tensor) -> Tensor:
        """Densities `[N]` >= 0 (1/world unit) at points `[N, 3]`."""
        return density_from_raw(self.evaluate(points.T)[3], self.head)

    def save(self, path: Path | str) -> Path:
        """Write the network as one safetensors file (about 70 KB for the paper's SRN shape)."""
        path = Path(path)
        metadata = {name: value if isinstance(value, str) else json.dumps(value) for name, value in self.about.items()}
        metadata["format"] = _FORMAT
        write_tensors(path, self.state_dict(), metadata)
        return path

    @classmethod
    def load(cls, path: Path | str) -> CompactField:
        """Read back `save`.

        Raises:
            MNIFError: the file is missing, or does not hold a collapsed field.
        """
        remedy = "write one with CompactField.save"
        tensors, metadata = read_tensors(path, remedy)
        if metadata.get("format") != _FORMAT:
            raise MNIFError(f"{path}: does not hold a collapsed field; {remedy}.")
        with content_errors(path, remedy):
            field = cls.from_tensors(tensors, {**metadata, "final_sine": json.loads(metadata["final_sine"])})
        check_keys(metadata, ("format", *field.about), path, remedy)
        return field

    def to_onnx(self, path: Path | str) -> Path:
        """Write the network as ONNX: input "points" `[N, in]`, output "raw" `[N, out]`, N free.

        Raises:
            MNIFError: the onnx extra is not installed.
        """
        require("onnx", "onnx")
        path = Path(path)
        example = torch.zeros(2, self.weights[0].shape[1])
        with atomic_file(path) as temporary:
            torch.onnx.export(
                _Layers(self),
                (example,),
                str(temporary),
                input_names=["points"],
                output_names=["raw"],
                dynamic_axes={"points": {0: "N"}, "raw": {0: "N"}},
                dynamo=False,
            )
        return path


class _Layers(nn.Module):
    """The layers of a field one by one, for an ONNX graph without the flat weights of `evaluate`."""

    def __init__(self, field: CompactField) -> None:
        super().__init__()
        self.form = field.form
        self.weights = [weight.detach().cpu().unsqueeze(0) for weight in field.weights]
        self.biases = [bias.detach().cpu().view(1, -1, 1) for bias in field.biases]

    def forward(self, points: Tensor) -> Tensor:
        """Raw values `[N, out]` at points `[N, in]`."""
        return families.forward_layers(self.form, self.weights, self.biases, points.T.unsqueeze(0))[0].T
