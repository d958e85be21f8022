"""What a shipment is composed of, measured once for all tests: the models are alike, and the packages the same."""

import dataclasses
import functools

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from serve.shipping import plan
from serve.shipping.plan import plan_shipment, write_shipment
from tests.serve import conftest
from zoo.artefact.engines.golden import add_engine
from zoo.artefact.engines.runtimes import ENGINES, How
from zoo.artefact.onnx_file import read_card, write


@pytest.fixture(scope="session", autouse=True)
def measured_once():
    """The first shipment's memory and sizes are those of all others like it: engine, cores, files' sizes."""
    found = {}

    def measure(paths, *, engine, cores, settings, _measure=plan.measure_memory):
        key = (engine, cores, *sorted(path.stat().st_size for path in paths))
        if key not in found:
            found[key] = _measure(paths, engine=engine, cores=cores, settings=settings)
        return found[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "measure_memory", measure)
        patch.setattr(plan, "installed_bytes", functools.cache(plan.installed_bytes))
        patch.setattr(plan, "openvino_bytes", functools.cache(plan.openvino_bytes))
        yield


@pytest.fixture
def artefact_of_both(tmp_path):
    """A file with golden answers of both engines."""
    pytest.importorskip("openvino")
    path = conftest.write_artefact(tmp_path / "both" / "model.onnx")
    card = read_card(path)
    engine = ENGINES["openvino"](path, card, How(threads=1))
    golden = add_engine(card.use.golden, engine, card)
    write(onnx.load_model(path), dataclasses.replace(card, use=dataclasses.replace(card.use, golden=golden)), path)
    return path


@pytest.fixture
def large_artefact(tmp_path, monkeypatch):
    """A file of 39 MB."""
    hidden = 50_000

    def model(seed):
        draw = np.random.default_rng(seed)
        first, second = (draw.normal(size=size).astype(np.float32) / 200 for size in ((192, hidden), (hidden, 3)))
        return helper.make_model(
            helper.make_graph(
                [
                    helper.make_node("Flatten", ["image"], ["flat"]),
                    helper.make_node("MatMul", ["flat", "a"], ["hidden"]),
                    helper.make_node("MatMul", ["hidden", "b"], ["logits"]),
                ],
                "large",
                [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8])],
                [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
                [numpy_helper.from_array(first, "a"), numpy_helper.from_array(second, "b")],
            ),
            opset_imports=[helper.make_opsetid("", 17)],
            ir_version=10,
        )

    with monkeypatch.context() as patch:
        patch.setattr(conftest, "_model", model)
        return conftest.write_artefact(tmp_path / "large" / "model.onnx")


@pytest.fixture(scope="module")
def shipment(output):
    return plan_shipment((), root=output, image="ghcr.io/me/zoo:1", replicas=3)


@pytest.fixture(scope="module")
def folder(shipment, tmp_path_factory):
    out = tmp_path_factory.mktemp("ship") / "out"
    write_shipment(shipment, out)
    return out
