import gzip
import json
import zlib

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from serve.protocols.http import Refused
from serve.protocols.oip.request import InferRequest, Wanted, inflate, read_request
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
        ("not valid JSON", b'{"a":' * 100_000),
        ("not valid JSON", b'{"id":' + b"1" * 5000 + b"}"),
        ("expected a JSON object", b"7"),
        ("`inputs`: expected a list of one tensor.*got nothing", {}),
        ("`inputs`: .*got a list of 2", {"inputs": [DATA, DATA]}),
        ("`inputs`: .*got a list of 1", {"inputs": [7]}),
        ("`inputs`: .*got an object", {"inputs": {}}),
        ("`id`: expected a text", {"id": 7, "inputs": [DATA]}),
        ("`id`: expected a text", {"id": "x" * 1025, "inputs": [DATA]}),
        ("`parameters`: expected an object", {"parameters": 7, "inputs": [DATA]}),
        ("`parameters.binary_data_output`", {"parameters": {"binary_data_output": 1}, "inputs": [DATA]}),
        ("`outputs`: expected a list", {"outputs": 7, "inputs": [DATA]}),
        ("`outputs`: expected a list", {"outputs": ["a"], "inputs": [DATA]}),
        (r"`outputs\[0\].name`", {"outputs": [{}], "inputs": [DATA]}),
        ("there twice", {"outputs": [{"name": "a"}, {"name": "a"}], "inputs": [DATA]}),
        ("classification", {"outputs": [{"name": "a", "parameters": {"classification": 0}}], "inputs": [DATA]}),
        ("classification", {"outputs": [{"name": "a", "parameters": {"classification": True}}], "inputs": [DATA]}),
        ("binary_data`", {"outputs": [{"name": "a", "parameters": {"binary_data": "no"}}], "inputs": [DATA]}),
        ("shared mem", {"outputs": [{"name": "a", "parameters": {"shared_memory_region": "r"}}], "inputs": [DATA]}),
        ("shared memory", {"inputs": [DATA | {"parameters": {"shared_memory_region": "r"}}]}),
        (r"`inputs\[0\].parameters`", {"inputs": [DATA | {"parameters": []}]}),
        ("expected `data`, or binary data", {"inputs": [{"name": "image"}]}),
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
        ("binary_data_size.*got 'x'", bytes(3), {"inputs": [BINARY | {"parameters": {"binary_data_size": "x"}}]}),
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


def test_a_document_of_too_many_values_is_not_parsed():
    with pytest.raises(Refused, match=r"about 1100001 values.*binary_data_size") as caught:
        read(b"[" + b"[]," * 550_000)
    assert caught.value.status == 413


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
        assert isinstance(found, InferRequest)
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
