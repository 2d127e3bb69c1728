"""The collapsed field: one plain small SIREN, all that viewer, renderer and exporters ever see."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from mnif_nerf.errors import MNIFError
from mnif_nerf.fields.heads import color_from_raw, density_from_raw
from mnif_nerf.fields.siren import siren_forward
from mnif_nerf.files import atomic_file, content_errors, read_tensors, write_tensors

_FORMAT = "mnif_nerf.compact_field"


class CompactField(nn.Module):
    """One SIREN with fixed weights; the sine frequency w0 is already multiplied into them.

    Args:
        weights: one `[out, in]` per layer.
        biases: one `[out]` per layer.
        final_sine: whether the output layer is a sine too.
        head: what the raw values mean, see `mnif_nerf.fields.heads`.
    """

    def __init__(
        self, weights: Sequence[Tensor], biases: Sequence[Tensor], final_sine: bool = False, head: str = "radiance"
    ) -> None:
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(w.detach().clone(), requires_grad=False) for w in weights)
        self.biases = nn.ParameterList(nn.Parameter(b.detach().clone(), requires_grad=False) for b in biases)
        self.final_sine = final_sine
        self.head = head

    def evaluate(self, points: Tensor) -> Tensor:
        """Raw values `[out, N]` at feature-major points `[in, N]`."""
        weights = [weight.unsqueeze(0) for weight in self.weights]
        biases = [bias.view(1, -1, 1) for bias in self.biases]
        return siren_forward(weights, biases, points.unsqueeze(0), self.final_sine)[0]

    def forward(self, points: Tensor) -> Tensor:
        """Raw values `[N, out]` at points `[N, in]`."""
        return self.evaluate(points.T).T

    def radiance(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Colours `[N, 3]` in [0, 1] and densities `[N]` >= 0 (1/world unit) at points `[N, 3]`."""
        raw = self.evaluate(points.T)
        return color_from_raw(raw[:3], self.head).T, density_from_raw(raw[3], self.head)

    def density(self, points: Tensor) -> Tensor:
        """Densities `[N]` >= 0 (1/world unit) at points `[N, 3]`."""
        return density_from_raw(self.evaluate(points.T)[3], self.head)

    def save(self, path: Path | str) -> Path:
        """Write the network as one safetensors file (about 70 KB for the paper's SRN shape)."""
        path = Path(path)
        metadata = {"format": _FORMAT, "final_sine": json.dumps(self.final_sine), "layers": str(len(self.weights))}
        metadata["head"] = self.head
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
            layers = range(int(metadata["layers"]))
            weights = [tensors[f"weights.{layer}"] for layer in layers]
            biases = [tensors[f"biases.{layer}"] for layer in layers]
            # Files of version 0.1.0 hold radiance fields and do not say so.
            return cls(weights, biases, json.loads(metadata["final_sine"]), metadata.get("head", "radiance"))

    def to_onnx(self, path: Path | str) -> Path:
        """Write the network as ONNX: input "points" `[N, in]`, output "raw" `[N, out]`, N free.

        Raises:
            MNIFError: the onnx extra is not installed.
        """
        try:
            import onnx  # noqa: F401
        except ImportError:
            raise MNIFError("ONNX export needs the onnx extra: pip install 'mnif_nerf[onnx]'.") from None
        path = Path(path)
        example = torch.zeros(2, self.weights[0].shape[1])
        # A copy: this field stays on its device.
        exported = CompactField(
            [w.cpu() for w in self.weights], [b.cpu() for b in self.biases], self.final_sine, self.head
        )
        with atomic_file(path) as temporary:
            torch.onnx.export(
                exported.eval(),
                (example,),
                str(temporary),
                input_names=["points"],
                output_names=["raw"],
                dynamic_axes={"points": {0: "N"}, "raw": {0: "N"}},
                dynamo=False,
            )
        return path
