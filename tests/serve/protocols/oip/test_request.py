import dataclasses
import gzip
import json
import zlib

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from serve.protocols.http import Refused
from serve.protocols.oip.request import Asked, Wanted, inflate, read_request
from serve.settings import Settings
from zoo.artefact.card import Input, Resize

SPEC = Input(colour="L", size=(2, 2), resize=Resize(rule="stretch"), mean=(0.5,), std=(0.25,))
SETTINGS = Settings(max_images=3, max_image_bytes=100)
DATA = {"name": "image", "datatype": "FP32", "shape": [1, 1, 2, 2], "data": [1, 2, 3, 4]}
BINARY = {"name": "image_bytes", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 7}}


def read(document, tail=b"", *, length=None):
    header = document if isinstance(document, bytes) else json.dumps(document).encode()
    if tail and length is None:
        length = str(len(header)).encode()
    return read_request(header + tail, length, SPEC, SETTINGS)


def test_a_request_with_everything():
    document = {
        "id": "7",
        "parameters": {"binary_data_output": True, "priority": 3},
        "inputs": [DATA],
        "outputs": [
            {"name": "a"},
            {"name": "b", "parameters": {"binary_data": False, "classification": 2}},
        ],
        "unknown": 1,
    }
    found = read(document)
    assert found.outputs == (Wanted(name="a", binary=True), Wanted(name="b", classes=2, binary=False))
    assert (found.id, found.binary) == ("7", True)
    np.testing.assert_array_equal(found.tensor, [[[[1, 2], [3, 4]]]])


def test_the_least_request():
    found = read({"inputs": [DATA]})
    assert (found.id, found.outputs, found.binary) == (None, (), False)
    assert read({"inputs": [BINARY]}, b"\x03\x00\x00\x00abc").tensor == (b"abc",)


@pytest.mark.parametrize(
    ("sentence", "document"),
    [
        ("not valid JSON", b"{"),
        ("not valid JSON", b'{"id": "\xff"}'),
        ("not valid JSON", b""),
        ("not valid JSON", b'{"a":' * 4000),
        ("not valid JSON", b'{"inputs": NaN}'),
        ("`id`: number out of range", b'{"id":' + b"1" * 5000 + b"}"),
        ("the request: expected `object`, got `int`; GET /docs", b"7"),
        ("the request: .*missing required field `inputs`", {}),
        ("`inputs`: expected one tensor", {"inputs": [DATA, DATA]}),
        ("`inputs`: expected one tensor", {"inputs": []}),
        (r"`inputs\[0\]`: expected `object`, got `int`", {"inputs": [7]}),
        ("`inputs`: expected `array`, got `object`", {"inputs": {}}),
        ("`id`: expected `str | null`, got `int`", {"id": 7, "inputs": [DATA]}),
        ("`id`: expected `str` of length <= 1024", {"id": "x" * 1025, "inputs": [DATA]}),
        ("`parameters`: expected `object | null`", {"parameters": 7, "inputs": [DATA]}),
        (r"`inputs\[0\].shape\[3\]`: expected `int`, got `float`", {"inputs": [DATA | {"shape": [1, 1, 2, 2.0]}]}),
        (r"`inputs\[0\].shape\[0\]`: expected `int`, got `bool`", {"inputs": [DATA | {"shape": [True, 1, 2, 2]}]}),
        (r"`inputs\[0\].shape\[0\]`: expected `int` >= 0", {"inputs": [DATA | {"shape": [-1, 1, 2, 2]}]}),
        (r"`inputs\[0\].shape`: expected `array`", {"inputs": [DATA | {"shape": None}]}),
        (r"`inputs\[0\].name`: expected `str`", {"inputs": [DATA | {"name": None}]}),
        (r"`inputs\[0\].datatype`: ", {"inputs": [DATA | {"datatype": 7}]}),
        (r"`inputs\[0\].datatype`: invalid enum value 'FP8'", {"inputs": [DATA | {"datatype": "FP8"}]}),
        ("`parameters.binary_data_output`", {"parameters": {"binary_data_output": 1}, "inputs": [DATA]}),
        ("`outputs`: expected `array | null`, got `int`", {"outputs": 7, "inputs": [DATA]}),
        (r"`outputs\[0\]`: expected `object`", {"outputs": ["a"], "inputs": [DATA]}),
        (r"`outputs\[0\]`: .*`name`", {"outputs": [{}], "inputs": [DATA]}),
        ("there twice", {"outputs": [{"name": "a"}, {"name": "a"}], "inputs": [DATA]}),
        ("classification", {"outputs": [{"name": "a", "parameters": {"classification": 0}}], "inputs": [DATA]}),
        ("classification", {"outputs": [{"name": "a", "parameters": {"classification": True}}], "inputs": [DATA]}),
        ("binary_data`", {"outputs": [{"name": "a", "parameters": {"binary_data": "no"}}], "inputs": [DATA]}),
        ("shared mem", {"outputs": [{"name": "a", "parameters": {"shared_memory_region": "r"}}], "inputs": [DATA]}),
        ("shared memory", {"inputs": [DATA | {"parameters": {"shared_memory_region": "r"}}]}),
        (r"`inputs\[0\].parameters`", {"inputs": [DATA | {"parameters": []}]}),
        ("expected `data`, or binary data", {"inputs": [{k: DATA[k] for k in DATA if k != "data"}]}),
        ("needs the header Inference-Header-Content-Length", {"inputs": [BINARY]}),
        ("got both", {"inputs": [DATA | {"parameters": {"binary_data_size": 16}}]}),
    ],
)
def test_what_breaks_the_protocol_is_refused(sentence, document):
    with pytest.raises(Refused, match=sentence) as caught:
        read(document)
    assert caught.value.status == 400
    str(caught.value).encode()


@pytest.mark.parametrize(
    ("sentence", "tail", "document"),
    [
        ("8 bytes follow the JSON, got 7", bytes(8), {"inputs": [BINARY]}),
        ("3 bytes follow the JSON, got 7", bytes(3), {"inputs": [BINARY]}),
        ("3 bytes follow the JSON, but no input", bytes(3), {"inputs": [DATA]}),
        (
            "binary_data_size`: expected `int | null`, got `str`",
            bytes(3),
            {"inputs": [BINARY | {"parameters": {"binary_data_size": "x"}}]},
        ),
    ],
)
def test_binary_data_of_another_size_is_refused(sentence, tail, document):
    with pytest.raises(Refused, match=sentence) as caught:
        read(document, tail)
    assert caught.value.status == 400


@pytest.mark.parametrize("length", [b"-1", b"x", b"", b"1000", b"1" * 5000, b"\xb2"])
def test_a_bad_length_of_the_json_is_refused(length):
    with pytest.raises(Refused, match="Inference-Header-Content-Length") as caught:
        read({"inputs": [DATA]}, length=length)
    assert caught.value.status == 400


_FLOODS = {
    "keys": b'{"inputs":[],' + b",".join(b'"k%d":1' % number for number in range(300_000)) + b"}",
    "lists": b"[" + b"[]," * 550_000 + b"[]]",
    "outputs": b'{"inputs":[],"outputs":[' + b'{"name":"a"},' * 20_000 + b'{"name":"a"}]}',
    "numbers": b'{"inputs":[{"name":"image","datatype":"FP32","shape":[1,1,2,2],"data":[' + b"1," * 50_000 + b"1]}]}",
}


@pytest.mark.parametrize("kind", _FLOODS)
def test_a_document_of_more_values_than_a_request_to_the_model_has_is_not_decoded(kind, monkeypatch):
    def decode(text):
        raise AssertionError("decoded")

    monkeypatch.setattr("serve.protocols.oip.request._decode", decode)
    with pytest.raises(Refused, match=r"about \d+ values, at most \d+ .*binary_data_size") as caught:
        read(_FLOODS[kind])
    assert caught.value.status == 413


def test_outputs_are_few_before_they_are_decoded():
    with pytest.raises(Refused, match=r"`outputs`: expected at most 16384 bytes, got \d+") as caught:
        read({"inputs": [DATA], "outputs": [{"name": "x" * 80}] * 300})
    assert caught.value.status == 413


@pytest.mark.parametrize("size", [(2, 2), (64, 64), (600, 1)])
@pytest.mark.parametrize("images", [1, 3])
def test_the_largest_request_to_the_model_is_decoded(size, images):
    spec = dataclasses.replace(SPEC, size=size)
    data = np.ones((images, 1, *size)).tolist()
    document = {"inputs": [DATA | {"shape": [images, 1, *size], "data": data}], "more": list(range(1000))}
    found = read_request(json.dumps(document).encode(), None, spec, SETTINGS)
    assert found.tensor.shape == (images, 1, *size)


@pytest.mark.parametrize(("encoding", "compress"), [(b"gzip", gzip.compress), (b"deflate", zlib.compress)])
def test_inflate(encoding, compress):
    body = b"abc" * 1000
    assert inflate(compress(body), encoding, 3000) == body
    with pytest.raises(Refused, match="more than 2999 bytes") as caught:
        inflate(compress(body), encoding, 2999)
    assert caught.value.status == 413
    for broken in (compress(body)[:-1], compress(body) + b"x", b"", b"abc", body):
        with pytest.raises(Refused, match=r"compressed body|Content-Encoding") as caught:
            inflate(broken, encoding, 3000)
        assert caught.value.status == 400


def test_another_encoding_is_refused():
    with pytest.raises(Refused, match="expected gzip, deflate or none, got 'br'") as caught:
        inflate(b"", b"br", 10)
    assert caught.value.status == 415


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["FP32", "image"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_PARAMETERS = ["binary_data_size", "classification", "binary_data", "binary_data_output", "shared_memory_region"]
_SOME = st.dictionaries(st.sampled_from(_PARAMETERS), _VALUES | st.integers(0, 20)) | _VALUES
_TENSOR = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["image", "image_bytes"]) | _VALUES,
        "datatype": st.sampled_from(["FP32", "BYTES"]) | _VALUES,
        "shape": st.sampled_from([[1, 1, 2, 2], [2, 1, 2, 2], [1], [2, 1]]) | st.lists(st.integers(-1, 5)) | _VALUES,
        "data": st.lists(_VALUES, min_size=4, max_size=4) | st.lists(st.text("YQ=/é", max_size=8)) | _VALUES,
        "parameters": _SOME,
    },
)
_DOCUMENT = st.fixed_dictionaries(
    {},
    optional={
        "id": _VALUES,
        "inputs": st.lists(_TENSOR, min_size=1, max_size=1) | _VALUES,
        "outputs": st.lists(st.fixed_dictionaries({}, optional={"name": _VALUES, "parameters": _SOME})) | _VALUES,
        "parameters": _SOME,
    },
)


def read_or_refuse(body, length):
    try:
        found = read_request(body, length, SPEC, SETTINGS)
    except Refused as refused:
        assert refused.status in (400, 413, 422)
        assert len(str(refused).encode()) < 1000
    else:
        assert isinstance(found, Asked)
        assert isinstance(found.tensor, tuple) or np.isfinite(found.tensor).all()


@given(_DOCUMENT, st.binary(max_size=40), st.booleans())
def test_any_document_is_read_or_refused(document, tail, announced):
    header = json.dumps(document).encode()
    read_or_refuse(header + tail, str(len(header)).encode() if announced else None)


@given(st.binary(max_size=200), st.none() | st.integers(0, 250).map(lambda length: b"%d" % length) | st.binary())
def test_any_bytes_are_read_or_refused(body, length):
    read_or_refuse(body, length)


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=4), st.booleans())
@example([], True)
def test_a_mutated_request_is_read_or_refused(changes, binary):
    header = json.dumps({"inputs": [BINARY if binary else DATA], "outputs": [{"name": "label"}]}).encode()
    body = bytearray(header + (b"\x03\x00\x00\x00abc" if binary else b""))
    for place, value in changes:
        body[place % len(body)] = value
    read_or_refuse(bytes(body), str(len(header)).encode() if binary else None)


@given(st.binary(max_size=300), st.sampled_from([b"gzip", b"deflate"]))
def test_any_compressed_bytes_are_inflated_or_refused(body, encoding):
    try:
        assert len(inflate(body, encoding, 100)) <= 100
    except Refused as refused:
        assert refused.status in (400, 413)


@given(st.lists(st.binary(max_size=100), min_size=1, max_size=3))
def test_images_survive_the_way(images):
    tail = b"".join(len(data).to_bytes(4, "little") + data for data in images)
    tensor = BINARY | {"shape": [len(images)], "parameters": {"binary_data_size": len(tail)}}
    assert read({"inputs": [tensor]}, tail).tensor == tuple(images)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=8, max_size=8), st.booleans())
def test_pixels_survive_the_way(values, binary):
    pixels = np.array(values, dtype=np.float32).reshape(2, 1, 2, 2)
    tensor = {"name": "image", "datatype": "FP32", "shape": [2, 1, 2, 2]}
    if binary:
        found = read({"inputs": [tensor | {"parameters": {"binary_data_size": 32}}]}, pixels.tobytes())
    else:
        found = read({"inputs": [tensor | {"data": pixels.tolist()}]})
    np.testing.assert_array_equal(found.tensor, pixels)
