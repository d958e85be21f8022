"""The memory of a container follows from its models."""

import pytest

from serve.settings import Settings
from serve.shipping.memory import Memory, measure_memory
from tests.serve.conftest import write_artefact
from zoo.base.errors import ArtefactError

MIB = 1 << 20


def test_a_limit_is_the_sum_of_its_parts_and_a_tenth():
    memory = Memory(
        imported=100 * MIB, models=40 * MIB, largest=10 * MIB, loaded=1, decoding=500 * MIB, bodies=128 * MIB
    )
    assert (memory.supervisor, memory.check, memory.worker) == (100 * MIB, 110 * MIB, 140 * MIB)
    assert memory.request == 256 * MIB  # 240
    assert memory.limit == 1088 * MIB  # 1.1 x 978 = 1076
    twice = Memory(**{**vars(memory), "workers": 2})
    assert twice.request == 384 * MIB  # 380
    assert twice.limit == 1408 * MIB  # 1.1 x 1246 = 1371


def test_models_are_measured_as_a_worker_loads_them(tmp_path, large_artefact):
    small = write_artefact(tmp_path / "small" / "model.onnx")
    large = large_artefact
    assert large.stat().st_size > 30e6
    settings = Settings(max_pixels=1_000_000, max_buffered_bytes=64 << 20)
    one, both = (
        measure_memory(paths, engine="onnxruntime", cores=2, settings=settings) for paths in ([small], [small, large])
    )
    assert 60 * MIB < one.imported < 250 * MIB
    assert one.models < 30 * MIB
    # Two sessions, as the file is below 64 MB.
    assert 1.5 * large.stat().st_size < both.models - one.models < 6 * large.stat().st_size
    assert both.largest > one.largest + large.stat().st_size
    assert (both.decoding, both.bodies, both.workers) == (20_000_000 + 2 * (32 << 20), 64 << 20, 1)
    assert both.loaded == 2 * (small.stat().st_size + large.stat().st_size)
    kept = measure_memory([small, large], engine="onnxruntime", cores=2, settings=Settings(max_loaded=1))
    assert kept.models == kept.largest > large.stat().st_size


def test_a_model_that_cannot_be_loaded_is_an_error(tmp_path):
    path = write_artefact(tmp_path / "liar" / "model.onnx", spoil_golden=True)
    with pytest.raises(ArtefactError, match=r"expected to load 1 as a worker does, got .*golden self-check failed"):
        measure_memory([path], engine="onnxruntime", cores=1, settings=Settings())
