from pathlib import Path

import pytest

from serve.settings import Settings, read_settings
from zoo.errors import UsageError


def test_defaults_without_any_variable():
    settings = read_settings({})
    assert settings == Settings()
    assert (settings.top, settings.max_images, settings.max_image_bytes) == (5, 32, 20 * 1024 * 1024)
    assert 2 <= settings.parallel <= 8


def test_every_field_has_a_variable():
    numbers = {"threads", "parallel", "top", "max_images", "max_image_bytes", "max_request_bytes", "max_pixels"}
    assert numbers | {"output", "default_model"} == set(Settings.__dataclass_fields__)
    environment = {f"POCKETZOO_{name.upper()}": "7" for name in Settings.__dataclass_fields__}
    settings = read_settings(environment)
    assert {getattr(settings, name) for name in numbers} == {7}
    assert (settings.output, settings.default_model) == (Path("7"), "7")


def test_an_empty_variable_counts_as_not_set():
    assert read_settings({"POCKETZOO_DEFAULT_MODEL": "", "POCKETZOO_TOP": " "}) == Settings()


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "many", "1" * 20, "٣"])
def test_a_bad_number_is_refused_by_name(value):
    with pytest.raises(UsageError, match="POCKETZOO_TOP: expected a whole number of at least 1, got"):
        read_settings({"POCKETZOO_TOP": value})
