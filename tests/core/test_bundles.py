import dataclasses
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from core.bundles import FORMAT_VERSION, Bundle, header_length, read_header
from core.contract.modes import ALLOWED_TRAINING_MODES
from core.errors import BundleError
from core.prediction import Predictor

GOLDEN = Path(__file__).parents[1] / "data"


@pytest.fixture(scope="module")
def file(engine):
    return engine.trained("five").outcome.file


def rewritten(file, change):
    """The file with another header under the key ``stillhouse``, and everything else as it was."""
    header = json.loads(read_raw(file)["__metadata__"]["stillhouse"])
    return save(load(file), {"stillhouse": json.dumps(change(header))})


def read_raw(file):
    return json.loads(file[8 : 8 + struct.unpack("<Q", file[:8])[0]])


def same(first, second):
    return first.to_bytes() == second.to_bytes()


@pytest.mark.parametrize("target", ["binary", "flag", "number", "five", "value"])
def test_a_bundle_survives_its_file_to_the_bit(engine, target):
    bundle = engine.trained(target).bundle
    file = bundle.to_bytes()
    copy = Bundle.from_bytes(file)
    assert copy.to_bytes() == file
    assert copy.weights.keys() == bundle.weights.keys()
    for name, array in bundle.weights.items():
        assert (copy.weights[name].dtype, copy.weights[name].shape) == (array.dtype, array.shape)
        assert copy.weights[name].tobytes() == array.tobytes()
    assert copy.classes == bundle.classes
    assert list(map(type, copy.classes or ())) == list(map(type, bundle.classes or ()))
    assert copy.architecture == bundle.architecture
    assert copy.encoder.columns == bundle.encoder.columns
    assert copy.metrics == bundle.metrics


@pytest.mark.parametrize("mode", ALLOWED_TRAINING_MODES)
def test_a_loaded_bundle_predicts_the_same_bits(engine, mode):
    finished = engine.trained("five", mode)
    columns = {name: finished.table[name] for name in finished.table.column_names}
    features = finished.bundle.encoder.transform(columns).features
    copy = Predictor(Bundle.from_bytes(finished.outcome.file))
    assert np.array_equal(copy.encode(columns).features, features)
    expected = Predictor(finished.bundle).predict(features)
    assert np.array_equal(copy.predict(features).probabilities, expected.probabilities)


def test_the_same_bundle_always_gives_the_same_bytes(engine):
    assert len({engine.trained("five").bundle.to_bytes() for _ in range(20)}) == 1


def test_a_memoryview_is_read_as_well_as_bytes(file):
    assert same(Bundle.from_bytes(memoryview(file)), Bundle.from_bytes(file))


def test_the_header_is_read_from_the_beginning_of_the_file_alone(file):
    header = read_header(file[: 8 + header_length(file[:8])])
    assert header["format_version"] == FORMAT_VERSION
    assert header["classes"] == ["a", "b", "c", "d", "e"]
    assert header.keys() >= {"schema", "metrics", "lineage", "settings", "architecture", "sha256"}
    assert header["library_versions"].keys() == {"torch", "numpy", "pyarrow"}


def test_the_file_is_plain_safetensors(file):
    assert read_raw(file)["__metadata__"].keys() == {"stillhouse"}
    names = load(file).keys()
    assert {name.partition(".")[0] for name in names} == {"weights", "encoder"}


@pytest.mark.parametrize("name", ["classification", "regression"])
def test_files_of_earlier_days_predict_what_they_did(name):
    bundle = Bundle.from_bytes((GOLDEN / f"{name}.safetensors").read_bytes())
    golden = json.loads((GOLDEN / f"{name}.json").read_text())
    predictor = Predictor(bundle)
    prediction = predictor.predict(predictor.encode(golden["columns"]).features)
    # float32, perhaps summed in another order on another machine
    if bundle.classes is None:
        np.testing.assert_allclose(prediction.values, golden["predictions"], rtol=1e-6)
    else:
        assert prediction.labels() == golden["predictions"]
        np.testing.assert_allclose(prediction.probabilities, golden["probabilities"], rtol=0, atol=1e-6)


def refused_or_equal(data, original):
    """A changed file is refused; only what changes no value, blanks in the JSON, may pass."""
    try:
        found = Bundle.from_bytes(data)
    except BundleError:
        return
    assert same(found, original)


@settings(deadline=None, max_examples=400)
@given(st.data())
def test_a_damaged_byte_is_refused_wherever_it_is(file, data):
    """Half the draws hit the header of safetensors, where a change may still be JSON."""
    position = data.draw(st.integers(0, len(file) - 1) | st.integers(0, 8 + header_length(file) - 1))
    damaged = bytearray(file)
    damaged[position] ^= data.draw(st.integers(1, 255))
    refused_or_equal(bytes(damaged), Bundle.from_bytes(file))


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_a_file_with_a_part_taken_out_or_doubled_is_refused(file, data):
    start = data.draw(st.integers(0, len(file) - 1))
    end = data.draw(st.integers(start + 1, len(file)))
    refused_or_equal(file[:start] + file[end:], Bundle.from_bytes(file))
    refused_or_equal(file[:end] + file[start:], Bundle.from_bytes(file))


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_truncated_file_is_refused(file, data):
    with pytest.raises(BundleError):
        Bundle.from_bytes(file[: data.draw(st.integers(0, len(file) - 1))])


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused(data):
    with pytest.raises(BundleError):
        Bundle.from_bytes(data)
    with pytest.raises(BundleError):
        read_header(data)


FOREIGN = {
    "empty": b"",
    "pickle": b"\x80\x04\x95\x0f\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
    "zip": b"PK\x03\x04" + bytes(60),
    "safetensors": save({"weights.0": np.zeros(3)}),
    "safetensors with metadata": save({"weights.0": np.zeros(3)}, {"format": "pt"}),
    "no JSON": save({}, {"stillhouse": "{"}),
    "a list": save({}, {"stillhouse": "[1]"}),
    "a number": save({}, {"stillhouse": "1"}),
    "deep": save({}, {"stillhouse": "[" * 100_000 + "]" * 100_000}),
    "huge header": struct.pack("<Q", 2**63) + b"{}",
    "version alone": save({}, {"stillhouse": json.dumps({"format_version": FORMAT_VERSION})}),
    "NaN": save({}, {"stillhouse": '{"format_version": 1, "temperature": NaN}'}),
    "lone surrogate": save({}, {"stillhouse": '{"format_version": 1, "task": "\\ud800"}'}),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_files_are_refused(kind):
    with pytest.raises(BundleError) as caught:
        Bundle.from_bytes(FOREIGN[kind])
    assert "/" not in caught.value.message


@pytest.mark.parametrize("version", [0, 3, "1", None, [1], "x" * 1000])
def test_a_file_of_an_unknown_version_is_refused_by_name(file, version):
    changed = rewritten(file, lambda header: header | {"format_version": version})
    with pytest.raises(BundleError, match="format version") as caught:
        Bundle.from_bytes(changed)
    assert len(caught.value.message) < 100
    with pytest.raises(BundleError, match="format version"):
        read_header(changed)


@pytest.mark.parametrize(
    "change",
    [
        {"classes": ["b", "a", "c", "d", "e"]},
        {"temperature": 2.0},
        {"metrics": {}},
        {"sha256": "0" * 64},
        {"sha256": None},
    ],
)
def test_a_changed_header_does_not_pass_the_checksum(file, change):
    with pytest.raises(BundleError, match="checksum"):
        Bundle.from_bytes(rewritten(file, lambda header: header | change))


def test_tensors_exchanged_for_one_another_do_not_pass_the_checksum(file):
    tensors = load(file)
    one, other = "weights.1.running_mean", "weights.1.running_var"
    tensors[one], tensors[other] = tensors[other], tensors[one]
    with pytest.raises(BundleError, match="checksum"):
        Bundle.from_bytes(save(tensors, read_raw(file)["__metadata__"]))


def test_numbers_that_json_lacks_are_no_part_of_a_bundle(engine):
    bundle = dataclasses.replace(engine.trained("value").bundle, target_std=float("inf"))
    with pytest.raises(ValueError, match="JSON"):
        bundle.to_bytes()


names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)


@settings(deadline=None, max_examples=50)
@given(st.lists(names, min_size=2, max_size=4, unique=True), st.floats(0.05, 20), names)
def test_any_text_and_any_float_survive_the_file(engine, classes, temperature, column):
    bundle = dataclasses.replace(
        engine.trained("five").bundle,
        classes=tuple(classes),
        temperature=temperature,
        target_column=column,
        metrics={column: temperature},
    )
    copy = Bundle.from_bytes(bundle.to_bytes())
    assert (copy.classes, copy.temperature, copy.target_column) == (tuple(classes), temperature, column)
    assert copy.metrics == {column: temperature}


def test_an_architecture_with_unknown_fields_is_refused(engine):
    """Also where the checksum fits, for a file can be made by hand."""
    bundle = engine.trained("five").bundle
    fields = dataclasses.asdict(bundle.architecture)
    made = dataclasses.make_dataclass("Made", [*fields, "surprise"])(**fields, surprise=1)
    with pytest.raises(BundleError, match="not a whole Stillhouse bundle"):
        Bundle.from_bytes(dataclasses.replace(bundle, architecture=made).to_bytes())
