import base64
import json

import msgspec
import numpy as np
import pytest

from serve.protocols.http import Refused
from serve.protocols.oip.tensors import InferInput, Output, images_name, read_tensor, write_answer
from serve.settings import Settings
from zoo.artefact.card import Input, Resize

SPEC = Input(colour="RGB", size=(2, 4), resize=Resize(rule="stretch"), mean=(0.5,) * 3, std=(0.25,) * 3)
SETTINGS = Settings(max_images=3, max_image_bytes=10)
PIXELS = np.arange(48, dtype=np.float32).reshape(2, 3, 2, 4) / 7


def read(raw=None, **tensor):
    tensor = {"name": "image", "datatype": "FP32", "shape": [2, 3, 2, 4], **tensor}
    if "data" in tensor:
        data = tensor["data"]
        tensor["data"] = msgspec.Raw(data if isinstance(data, bytes) else json.dumps(data).encode())
    return read_tensor(InferInput(**tensor), None if raw is None else memoryview(raw), SPEC, SETTINGS)


def read_images(raw=None, **tensor):
    return read(raw, **{"name": "image_bytes", "datatype": "BYTES", "shape": [2], **tensor})


def elements(*images):
    return b"".join(len(data).to_bytes(4, "little") + data for data in images)


@pytest.mark.parametrize("data", [PIXELS.tolist(), PIXELS.ravel().tolist()], ids=["nested", "flat"])
def test_pixels_as_json(data):
    found = read(data=data)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, PIXELS)


def test_whole_numbers_are_numbers():
    np.testing.assert_array_equal(read(shape=[1, 3, 2, 4], data=[1] * 24), np.ones((1, 3, 2, 4)))


def test_binary_pixels_are_a_view_of_the_body():
    body = bytes(8) + PIXELS.tobytes()
    found = read(memoryview(body)[8:])
    np.testing.assert_array_equal(found, PIXELS)
    assert np.shares_memory(found, np.frombuffer(body, dtype=np.uint8))


def test_unaligned_binary_pixels_are_copied():
    found = read(memoryview(b"{" + PIXELS.tobytes())[1:])
    np.testing.assert_array_equal(found, PIXELS)
    assert found.flags.aligned


@pytest.mark.parametrize("shape", [[2], [2, 1]])
def test_images_as_base64_and_as_binary(shape):
    images = (b"\x00\xff", b"abc")
    texts = [base64.b64encode(data).decode() for data in images]
    assert read_images(shape=shape, data=texts) == images
    assert read_images(elements(*images), shape=shape) == images
    if len(shape) == 2:
        assert read_images(shape=shape, data=[[text] for text in texts]) == images


@pytest.mark.parametrize(
    ("status", "sentence", "tensor"),
    [
        (400, r"inputs\[0\].name.*expected 'image' or 'image_bytes', got 'x'", {"name": "x"}),
        (422, "datatype.*'image' takes FP32, got 'FP16'", {"datatype": "FP16"}),
        (422, "'image_bytes' takes BYTES, got 'FP32'", {"name": "image_bytes"}),
        (422, r"shape.*expected \[-1, 3, 2, 4\].*got \[1, 3, 4, 2\]", {"shape": [1, 3, 4, 2]}),
        (422, "shape.*expected", {"shape": []}),
        (422, "shape.*expected", {"shape": [0, 3, 2, 4]}),
        (413, "shape.*4 images, at most 3 .POCKETZOO_MAX_IMAGES", {"shape": [4, 3, 2, 4]}),
        (413, "images, at most 3", {"shape": [10**4000, 3, 2, 4]}),
        (400, r"`inputs\[0\].data`: expected `array`, got `str`", {"data": "abc"}),
        (400, r"`inputs\[0\].data\[47\]`: expected `float`, got `str`", {"data": [*[0.5] * 47, "1"]}),
        (400, r"data\[47\]`: expected `float`, got `bool`", {"data": [*[0.5] * 47, True]}),
        (400, r"data\[47\]`: expected `float`, got `null`", {"data": [*[0.5] * 47, None]}),
        (400, r"data\[47\]`: expected `float`, got `array`", {"data": [*[0.5] * 47, []]}),
        (400, "expected `array`, got `int`", {"data": [[[[1, 2, 3, 4]] * 2] * 3, 7]}),
        (400, "expected `array`, got `int`", {"data": [[1, 2], [3]]}),
        (400, "not valid JSON", {"data": [*[0.5] * 47, float("nan")]}),
        (422, "wants 48 numbers, got 3", {"data": [1, 2, 3]}),
        (422, "wants 48 numbers, got 0", {"data": []}),
        (422, "nested as `shape`", {"data": [[[[1, 2]], [[3]]]]}),
        (422, "nested as `shape`", {"data": PIXELS.transpose(0, 1, 3, 2).tolist()}),
        (422, "nested as `shape`", {"data": PIXELS.tolist()[:1]}),
        (422, "finite", {"data": [*[0.5] * 47, 1e300]}),
        (400, "number out of range", {"data": [*[0.5] * 47, 10**400]}),
    ],
)
def test_pixels_that_are_refused(status, sentence, tensor):
    with pytest.raises(Refused, match=sentence) as caught:
        read(**{"data": PIXELS.ravel().tolist(), **tensor})
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("status", "sentence", "raw"),
    [
        (422, "has 192 bytes, got 188", PIXELS.tobytes()[:-4]),
        (422, "has 192 bytes, got 0", b""),
        (422, "finite", np.full(48, np.inf, dtype=np.float32).tobytes()),
        (422, "finite", np.full(48, np.nan, dtype=np.float32).tobytes()),
    ],
)
def test_binary_pixels_that_are_refused(status, sentence, raw):
    with pytest.raises(Refused, match=sentence) as caught:
        read(raw)
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("status", "sentence", "raw", "tensor"),
    [
        (400, "base64", None, {"data": ["YQ==", "not base64!"]}),
        (400, "base64", None, {"data": ["YQ==", "ä"]}),
        (400, "expected `bytes`, got `int`", None, {"data": ["YQ==", 7]}),
        (422, "nested as `shape`", None, {"data": [["YQ==", "YQ=="]], "shape": [2, 1]}),
        (422, "nested as `shape`", None, {"data": [["YQ=="], ["YQ=="]], "shape": [2]}),
        (422, "wants 2 base64 texts, got 1", None, {"data": ["YQ=="]}),
        (422, r"expected \[-1\] or \[-1, 1\]", None, {"data": ["YQ=="], "shape": [1, 2]}),
        (413, "image 2 has 11 bytes, at most 10", elements(b"a", b"b" * 11), {}),
        (400, "ends inside element 1", b"\x05\x00\x00\x00abc", {}),
        (400, "ends inside element 2", elements(b"a") + b"\x00\x00", {}),
        (400, "ends inside element 1", b"\xff\xff\xff\xff" + bytes(100), {}),
        (422, "says 2 elements, the binary data has 1", elements(b"a"), {}),
        (422, "says 2 elements, the binary data has 2 and more", elements(b"a", b"b", b"c"), {}),
        (422, "says 2 elements, the binary data has 0", b"", {}),
    ],
)
def test_images_that_are_refused(status, sentence, raw, tensor):
    with pytest.raises(Refused, match=sentence) as caught:
        read_images(raw, **tensor)
    assert caught.value.status == status


def test_an_answer_as_json():
    scores = np.array([[0.25, 0.75]], dtype=np.float32)
    outputs = [
        Output(name="p", shape=scores.shape, values=scores, binary=False),
        Output(name="l", shape=(1,), values=["é"], binary=False),
    ]
    body, length = write_answer(name="m", version="v", request_id="\ud800", outputs=outputs)
    assert length is None
    assert json.loads(body) == {
        "model_name": "m",
        "model_version": "v",
        "id": "\ud800",
        "outputs": [
            {"name": "p", "datatype": "FP32", "shape": [1, 2], "data": [0.25, 0.75]},
            {"name": "l", "datatype": "BYTES", "shape": [1], "data": ["é"]},
        ],
    }


def test_an_answer_whose_tensors_follow_its_json():
    scores = np.array([[0.25, 0.75]], dtype=np.float32)
    outputs = [
        Output(name="p", shape=scores.shape, values=scores, binary=True),
        Output(name="l", shape=(2,), values=["é", ""], binary=True),
        Output(name="j", shape=(1,), values=["x"], binary=False),
    ]
    body, length = write_answer(name="m", version="v", request_id=None, outputs=outputs)
    document = json.loads(body[:length])
    sizes = [entry.get("parameters") for entry in document["outputs"]]
    assert sizes == [{"binary_data_size": 8}, {"binary_data_size": 10}, None]
    assert "id" not in document
    assert document["outputs"][2]["data"] == ["x"]
    assert body[length:] == scores.tobytes() + b"\x02\x00\x00\x00\xc3\xa9" + bytes(4)


def test_the_second_input_takes_files():
    assert images_name(SPEC) == "image_bytes"
