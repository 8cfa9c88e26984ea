import io
import json
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pyarrow as pa
import pytest
import torch

import core.export
from core.encoding import Encoder
from core.export import EXPORTS, to_onnx, to_torchscript
from core.prediction import Predictor

CASES = [
    (target, mode)
    for target in ("five", "value")
    for mode in ("mlp_dense", "linear_glm_baseline", "tabresnet", "calibrated_classifier")
    if (target, mode) != ("value", "calibrated_classifier")
]
every_model = pytest.mark.parametrize(("target", "mode"), CASES)
FORMATS = pytest.mark.parametrize("kind", EXPORTS)


def run_onnx(file):
    session = onnxruntime.InferenceSession(file)
    assert [value.name for value in session.get_inputs()] == ["features"]
    assert [value.name for value in session.get_outputs()] == ["predictions"]
    return lambda features: session.run(None, {"features": features})[0]


def run_torchscript(file):
    module = torch.jit.load(io.BytesIO(file))
    return lambda features: module(torch.tensor(features)).detach().numpy()


RUN = {"onnx": run_onnx, "torchscript": run_torchscript}


@FORMATS
@every_model
def test_an_exported_model_predicts_as_the_bundle_does(engine, kind, target, mode):
    bundle = engine.trained(target, mode).bundle
    predictor, exported = Predictor(bundle), RUN[kind](EXPORTS[kind](bundle))
    for rows in (1, 2, 1000):
        features = np.random.default_rng(rows).normal(size=(rows, bundle.encoder.width)).astype(np.float32)
        expected = predictor.predict(features)
        if bundle.classes is None:
            assert exported(features).shape == (rows,)
            # of the spread of the target: float32 outputs, scaled in float64
            np.testing.assert_allclose(
                exported(features), expected.values, rtol=0, atol=1e-5 * bundle.target_std
            )
        else:
            np.testing.assert_allclose(exported(features), expected.probabilities, rtol=0, atol=1e-5)


@FORMATS
def test_a_target_far_from_zero_keeps_its_digits(engine, kind):
    """In float32 a number near 1.7e9 would be off by up to 64."""
    table = engine.table("value")
    table = table.set_column(5, "y", pa.array(table["y"].to_numpy() + 1.7e9))
    bundle = engine.train(table).bundle
    features = np.random.default_rng(0).normal(size=(50, bundle.encoder.width)).astype(np.float32)
    found = RUN[kind](EXPORTS[kind](bundle))(features)
    np.testing.assert_allclose(found, Predictor(bundle).predict(features).values, rtol=0, atol=1e-3)


def metadata(kind, file):
    if kind == "onnx":
        return {entry.key: entry.value for entry in onnx.load_from_string(file).metadata_props}["stillhouse"]
    extra = {"stillhouse.json": ""}
    torch.jit.load(io.BytesIO(file), _extra_files=extra)
    return extra["stillhouse.json"]


@FORMATS
@pytest.mark.parametrize("target", ["five", "value"])
def test_an_exported_file_says_what_its_features_are(engine, kind, target):
    finished = engine.trained(target)
    found = json.loads(metadata(kind, EXPORTS[kind](finished.bundle)))
    assert found["features"] == list(finished.bundle.encoder.feature_names)
    assert found["target"] == "y"
    assert found["task"] == finished.bundle.task
    assert found["classes"] == (list(finished.bundle.classes) if finished.bundle.classes else None)
    arrays = {name: np.array(values) for name, values in found["encoder_arrays"].items()}
    encoder = Encoder.from_state(found["encoder"], arrays)
    columns = {name: finished.table[name] for name in finished.table.column_names}
    expected = finished.bundle.encoder.transform(columns).features
    assert np.array_equal(encoder.transform(columns).features, expected)


def test_onnx_files_pass_the_checker_of_onnx(engine):
    onnx.checker.check_model(onnx.load_from_string(to_onnx(engine.trained("five", "tabresnet").bundle)))


@FORMATS
@pytest.mark.parametrize("target", ["five", "value"])
def test_exported_files_name_no_source_file_of_the_server(engine, kind, target):
    file = EXPORTS[kind](engine.trained(target).bundle)
    parts = [file]
    if kind == "torchscript":
        archive = zipfile.ZipFile(io.BytesIO(file))
        parts = [archive.read(name) for name in archive.namelist()]
    folders = {Path(module.__file__).parents[1] for module in (core.export, torch)}
    for part in parts:
        assert not any(str(folder).encode() in part for folder in folders)


def test_exporting_leaves_global_generators_and_the_bundle_alone(engine):
    bundle = engine.trained("five").bundle
    before, state = bundle.to_bytes(), torch.get_rng_state()
    to_onnx(bundle)
    to_torchscript(bundle)
    assert bundle.to_bytes() == before
    assert torch.equal(torch.get_rng_state(), state)
