"""Bundles in formats that other programs run: ONNX and TorchScript.

Both take the encoded features, float32 (N, F), and give probabilities (N, C), float32, or predictions (N,) in
the target's units, float64. What the features are, and the whole encoder, travels inside the file as JSON
under the name ``stillhouse``.
"""

import io
import json
import logging
import warnings
import zipfile
from collections.abc import Callable, Mapping
from typing import Final, Literal

import onnx
import torch
from torch import Tensor, nn

from core.bundles import Bundle
from core.ensembles import load_model

ExportFormat = Literal["onnx", "torchscript"]


class ExportedModel(nn.Module):
    """The network with what turns its outputs into predictions."""

    scale: Tensor

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        self.network = load_model(bundle.architecture, bundle.weights)
        self.classification = bundle.classes is not None
        self.temperature = bundle.temperature
        # tensors, for the ONNX exporter makes numbers float32
        scale = torch.tensor([bundle.target_mean, bundle.target_std], dtype=torch.float64)
        self.register_buffer("scale", scale, persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        outputs: Tensor = self.network(features)
        if self.classification:
            return torch.softmax(outputs / self.temperature, dim=1)
        return outputs.squeeze(1).double() * self.scale[1] + self.scale[0]


def to_onnx(bundle: Bundle) -> bytes:
    """ONNX with input ``features`` and output ``predictions``, any number of rows."""
    module = ExportedModel(bundle).eval()
    example = torch.zeros(2, bundle.architecture.inputs)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    program = torch.onnx.export(
        module,
        (example,),
        input_names=["features"],
        output_names=["predictions"],
        dynamic_shapes=({0: torch.export.Dim("rows")},),
        dynamo=True,
        verbose=False,
    )
    assert program is not None  # noqa: S101  # it is None for the exporter of old alone
    model = program.model_proto
    for node in model.graph.node:  # they hold stack traces, and so the paths of this server
        node.ClearField("metadata_props")
    onnx.helper.set_model_props(model, {"stillhouse": description(bundle)})
    return bytes(model.SerializeToString())


def to_torchscript(bundle: Bundle) -> bytes:
    """TorchScript for ``torch.jit.load``; the extra file ``stillhouse.json`` describes the features."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit is deprecated, its files are not
        example = torch.zeros(2, bundle.architecture.inputs)
        traced = torch.jit.trace(ExportedModel(bundle).eval(), (example,))
        torch.jit.save(traced, buffer, _extra_files={"stillhouse.json": description(bundle)})
    return _without_sources(buffer.getvalue())


def _without_sources(file: bytes) -> bytes:
    """A TorchScript file without the names and lines of the source files on this server."""
    kept = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(file)) as archive, zipfile.ZipFile(kept, "w") as target:
        for item in archive.infolist():
            if not item.filename.endswith(".debug_pkl"):
                target.writestr(item, archive.read(item))
    return kept.getvalue()


def description(bundle: Bundle) -> str:
    """What a reader of an exported file must know: features in order, encoder, classes, target."""
    encoder, arrays = bundle.encoder.to_state()
    return json.dumps(
        {
            "features": list(bundle.encoder.feature_names),
            "encoder": encoder,
            "encoder_arrays": {name: array.tolist() for name, array in arrays.items()},
            "task": bundle.task,
            "classes": bundle.classes,
            "target": bundle.target_column,
        }
    )


EXPORTS: Final[Mapping[ExportFormat, Callable[[Bundle], bytes]]] = {
    "onnx": to_onnx,
    "torchscript": to_torchscript,
}
