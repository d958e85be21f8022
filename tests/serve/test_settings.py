import dataclasses
from pathlib import Path

import pytest

from serve.settings import Settings, read_settings
from zoo.base.errors import UsageError

SETTABLE = {
    "batch": "off",
    "max_buffered_bytes": "99999999",
    "max_request_bytes": "9999",
    "batch_size": "7",
    "batch_window_ms": "1.5",
    "default_model": "vit",
    "formats": "png, Jpeg",
    "log": "text",
    "models": "there",
    "keys_file": "keys.toml",
    "abstain": "0.5",
    "page": "0",
    "engine": "openvino,onnxruntime",
}


def test_defaults_without_any_variable():
    settings = read_settings({})
    assert settings == Settings()
    assert (settings.top, settings.max_images, settings.max_image_bytes) == (5, 32, 20 * 1024 * 1024)
    assert 2 <= settings.slots <= 16


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Settings)])
def test_every_field_has_a_variable(name):
    settings = read_settings({f"POCKETZOO_{name.upper()}": SETTABLE.get(name, "9")})
    value, default = getattr(settings, name), getattr(Settings(), name)
    assert value != default
    assert type(value) is type(default) or default is None


def test_values_are_read_as_what_they_are():
    settings = read_settings({f"POCKETZOO_{name.upper()}": value for name, value in SETTABLE.items()})
    assert settings.formats == ("PNG", "JPEG")
    assert (settings.batch_window_ms, settings.abstain, settings.page) == (1.5, 0.5, 0)
    assert settings.models == Path("there")


@pytest.mark.parametrize("name", ["STATE", "KEEP_VERSIONS"])
def test_a_setting_that_is_no_more_is_refused_with_what_to_do_instead(name):
    with pytest.raises(UsageError, match=f"POCKETZOO_{name} is no setting any more: .* old file back; unset it"):
        read_settings({f"POCKETZOO_{name}": "3"})


def test_an_empty_variable_counts_as_not_set():
    assert read_settings({"POCKETZOO_DEFAULT_MODEL": "", "POCKETZOO_TOP": " "}) == Settings()


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "many", "1" * 20, "٣"])
def test_a_bad_number_is_refused_by_name(value):
    with pytest.raises(UsageError, match=f"POCKETZOO_TOP: expected `int`.*, got '{value}'; change it or unset it"):
        read_settings({"POCKETZOO_TOP": value})


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("TIMEOUT_SECONDS", "soon", "expected `float`, got 'soon'"),
        ("TIMEOUT_SECONDS", "nan", "expected `float` > 0.0, got 'nan'"),
        ("QUEUE_SECONDS", "-1", "expected `float` >= 0.0"),
        ("BATCH", "yes", "POCKETZOO_BATCH: expected one of auto, off, on, got 'yes'"),
        ("LOG", "xml", "POCKETZOO_LOG: expected one of json, text, off, got 'xml'"),
        ("FORMATS", "png,eps", "unknown format in POCKETZOO_FORMATS 'EPS'"),
        ("ABSTAIN", "2", "expected `float` <= 1.0"),
        ("PAGE", "2", "expected `bool`, got '2'"),
        ("FORMATS", ",", "expected at least one of AVIF, BMP"),
        ("TIMEOUT_SECONDS", "0", "expected `float` > 0.0"),
        ("MAX_BUFFERED_BYTES", "9", "expected at least POCKETZOO_MAX_REQUEST_BYTES"),
        ("QUEU", "3", "POCKETZOO_QUEU is no setting; did you mean POCKETZOO_QUEUE"),
        ("MAX_PIXEL", "3", "did you mean POCKETZOO_MAX_PIXELS"),
    ],
)
def test_a_value_that_cannot_be_is_refused_in_a_sentence(name, value, sentence):
    with pytest.raises(UsageError, match=sentence):
        read_settings({f"POCKETZOO_{name}": value})


def test_the_guide_names_every_setting():
    guide = (Path(__file__).resolve().parents[2] / "docs" / "guides" / "serving.md").read_text()
    assert [field.name for field in dataclasses.fields(Settings) if f"`{field.name}`" not in guide] == []


def test_variables_that_are_no_settings_are_left_alone():
    strange = {"POCKETZOO_PORT": "tcp://10.0.0.1:3000", "POCKETZOO_SERVICE_HOST": "10.0.0.1", "POCKETZOO_OUTPUT": "x"}
    assert read_settings(strange) == read_settings({"POCKETZOO_OUTPUT": "x"})
