"""The engine of an image, and what it brings."""

from pathlib import Path

import pytest

from serve.shipping.engine import engine_in_image
from serve.shipping.memory import Memory
from serve.shipping.models import ShippedModel
from serve.shipping.plan import plan_shipment, write_shipment
from serve.shipping.sizes import Sizes, told
from zoo.base.errors import ArtefactError, UsageError


def _model(*engines: str) -> ShippedModel:
    return ShippedModel(path=Path("a"), target="a", digest="0" * 64, bytes=1, labels=2, engines=engines)


@pytest.mark.parametrize(
    ("wanted", "engines", "found"),
    [
        ("onnxruntime", ("onnxruntime", "openvino"), ("onnxruntime", ())),
        ("openvino", ("onnxruntime", "openvino"), ("openvino", ("openvino",))),
        ("openvino-bf16", ("onnxruntime",), ("openvino-bf16", ("openvino",))),
        ("openvino, onnxruntime", ("onnxruntime",), ("openvino,onnxruntime", ("openvino",))),
        ("auto", ("onnxruntime", "openvino"), ("auto", ("openvino",))),
        ("auto", ("onnxruntime",), ("onnxruntime", ())),
    ],
)
def test_an_engine_brings_its_package(wanted, engines, found):
    assert engine_in_image(wanted, [_model("onnxruntime"), _model(*engines)]) == found


def test_an_engine_that_is_none_or_has_no_answer_is_refused(output):
    with pytest.raises(UsageError, match="unknown engine 'openvin'; did you mean openvino"):
        plan_shipment([output / "good"], root=output, engine="openvin")
    with pytest.raises(UsageError, match=r"openvino (has no golden answer in the file|is not installed)"):
        plan_shipment([output / "good"], root=output, engine="openvino")
    with pytest.raises(ArtefactError, match=r"no artefact to ship.*openvino"):
        plan_shipment((), root=output, engine="openvino")


def test_the_image_has_openvino_only_where_it_was_asked_for(tmp_path, artefact_of_both):
    plain, other, auto = (
        plan_shipment([artefact_of_both], root=tmp_path, engine=engine, hashes=False)
        for engine in ("onnxruntime", "openvino", "auto")
    )
    assert plain.models[0].engines[:2] == ("onnxruntime", "openvino")
    assert "openvino" not in plain.texts["requirements.txt"]
    assert "POCKETZOO_ENGINE=onnxruntime " in plain.texts["Containerfile"]
    for shipment, name in ((other, "openvino"), (auto, "auto")):
        assert shipment.engine == name
        assert f"POCKETZOO_ENGINE={name} " in shipment.texts["Containerfile"]
        assert "\nopenvino==" in shipment.texts["requirements.txt"]
        assert "RUN pip install -r requirements.txt" in shipment.texts["Containerfile"]
        assert shipment.sizes.packages == plain.sizes.packages + plain.sizes.openvino
    assert len({plain.image, other.image, auto.image}) == 3
    write_shipment(other, tmp_path / "out")
    assert "engine: openvino; of the packages OpenVINO has " in (tmp_path / "out" / "README.md").read_text()


def test_sizes_are_told_in_sentences():
    memory = Memory(
        imported=100 << 20, models=40 << 20, largest=10 << 20, loaded=1, decoding=500 << 20, bodies=128 << 20
    )
    sizes = Sizes(models=3_000_000, packages=280_000_000, sources=400_000, openvino=None)
    lines = list(told(sizes, memory, 2, "onnxruntime"))
    assert lines[0] == (
        "image: 283.4 MB on top of python:3.11-slim: 280.0 MB of packages, 3.0 MB of models (2), 0.4 MB of sources"
    )
    assert lines[1].endswith("--engine openvino would add a size unknown here, where it is not installed")
    assert lines[2].startswith(
        "memory: 256 MiB waiting (supervisor 100 MiB, 1 worker x 140 MiB, 40 MiB of it the models)"
    )
    assert lines[3].startswith("limit: 1088 MiB: ")
