"""The OpenAPI document is valid, complete and true."""

import json
import re

import jsonschema_rs
import pytest
from schemathesis.specs.openapi.definitions import OPENAPI_31

from serve.protocols.openapi.document import ERRORS, document
from tests.serve.conftest import BENTOML_WARNINGS

pytestmark = BENTOML_WARNINGS

METHODS = ("get", "put", "post", "delete")


def _operations(found):
    return [
        (method, path, entry[method]) for path, entry in found["paths"].items() for method in METHODS if method in entry
    ]


def _references(value):
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        for entry in value.values():
            yield from _references(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from _references(entry)


def test_it_is_openapi_3_1_and_json():
    found = document(["vit", "cnn5"])
    assert json.loads(json.dumps(found)) == found
    assert found["openapi"] == "3.1.0"
    jsonschema_rs.validator_for(OPENAPI_31).validate(found)
    assert not jsonschema_rs.validator_for(OPENAPI_31).is_valid(found | {"paths": []})


def test_every_schema_is_a_json_schema_and_every_reference_leads_somewhere():
    found = document()
    for schema in found["components"]["schemas"].values():
        jsonschema_rs.meta.validate({"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema)
    references = set(_references(found))
    for reference in references:
        place = found
        for part in reference.removeprefix("#/").split("/"):
            place = place[part]
    named = {
        f"#/components/{section}/{name}"
        for section, entries in found["components"].items()
        for name in entries
        if section != "securitySchemes"
    }
    assert named - references == {"#/components/headers/Allow"} - references


def test_every_route_is_there():
    found = [f"{method} {path}" for method, path, _ in _operations(document())]
    assert len(found) == len(set(found))
    for expected in (
        "post /predict",
        "post /v1/predict",
        "post /v1/models/{name}:predict",
        "post /v1/models/{name}/versions/{version}:predict",
        "get /v2",
        "get /v2/health/live",
        "get /v2/health/ready",
        "get /v2/models/{name}",
        "get /v2/models/{name}/versions/{version}",
        "get /v2/models/{name}/ready",
        "get /v2/models/{name}/versions/{version}/ready",
        "post /v2/models/{name}/infer",
        "post /v2/models/{name}/versions/{version}/infer",
        "get /models",
        "get /metrics",
        "get /livez",
        "get /readyz",
        "get /healthz",
        "get /docs",
        "get /docs.json",
        "post /v2/repository/index",
    ):
        assert expected in found


def test_operations_have_names_of_their_own_and_every_part_of_their_path():
    found = document()
    names = [operation["operationId"] for _, _, operation in _operations(found)]
    assert len(names) == len(set(names)) > 20
    for _, path, operation in _operations(found):
        given = found["paths"][path].get("parameters", []) + operation.get("parameters", [])
        parameters = [
            found["components"]["parameters"][entry["$ref"].rpartition("/")[2]] if "$ref" in entry else entry
            for entry in given
        ]
        assert {entry["name"] for entry in parameters if entry["in"] == "path"} == set(re.findall(r"{(\w+)}", path))


@pytest.mark.parametrize(
    ("path", "statuses"),
    [
        ("/predict", {200, 400, 401, 404, 405, 408, 413, 415, 422, 429, 503, 504}),
        ("/v1/predict", {200, 400, 401, 404, 405, 408, 413, 415, 422, 429, 503, 504}),
        ("/v2/models/{name}/infer", {200, 400, 401, 404, 405, 408, 413, 415, 422, 429, 503, 504}),
    ],
)
def test_statuses(path, statuses):
    found = document()
    assert {int(status) for status in found["paths"][path]["post"]["responses"]} == statuses


def test_errors_are_one_sentence_with_the_headers_that_go_with_them():
    responses = document()["components"]["responses"]
    assert {int(status) for status in responses} == set(ERRORS)
    for status, response in responses.items():
        content = response["content"]["application/json"]
        assert content["schema"]["$ref"] == "#/components/schemas/ErrorResponse"
        assert set(content.get("example", {"error": ""})) == {"error"}
        assert ("Retry-After" in response["headers"]) == (status in {"429", "503"})
        assert ("WWW-Authenticate" in response["headers"]) == (status == "401")


def test_a_key_is_optional_for_predicting_and_asked_of_nobody_else():
    for _, path, operation in _operations(document()):
        security = operation.get("security")
        if (
            "predict" in path
            or path in ("/models", "/v1/models", "/v1/models/{name}")
            or (path.startswith("/v2") and "/health/" not in path)
        ):
            assert security == [{}, {"bearer": []}, {"apiKey": []}]
        else:
            assert security is None


def test_examples_are_what_their_schemas_say():
    found = document(["vit"])
    seen = 0
    for _, _, operation in _operations(found):
        contents = [response.get("content", {}) for response in operation["responses"].values()]
        contents.append(operation.get("requestBody", {}).get("content", {}))
        for content in contents:
            for entry in content.values():
                if "example" in entry:
                    schema = entry["schema"] | {"components": found["components"]}
                    jsonschema_rs.validator_for(schema).validate(entry["example"])
                    seen += 1
    assert seen >= 6
    assert found["components"]["parameters"]["name"]["example"] == "vit"


def test_formats_are_those_of_the_server():
    found = document(formats=("JPEG", "WEBP"))["paths"]["/v1/predict"]["post"]["requestBody"]["content"]
    assert set(found) == {"image/jpeg", "image/webp", "application/octet-stream", "application/json"}
