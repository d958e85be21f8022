"""The operator's documents as pydantic models and operations; :mod:`serve.protocols.admin` answers them."""

from __future__ import annotations

from pydantic import BaseModel, Field

from serve.protocols.openapi.parts import JsonObject, guarded, json_answer, operation, reference
from serve.protocols.schema import ModelInfo

__all__ = ["MODELS", "paths"]

_TAG = "Administration"


class Split(BaseModel):
    """A share of one model's requests that another one, or another version of it, answers."""

    to: str = Field(description="name of the model that answers")
    version: str | None = Field(description="null: the one that it serves at the time")
    percent: float = Field(ge=0, le=100)


class Shadow(BaseModel):
    """What sees a model's requests too; its answers are only compared."""

    to: str
    version: str | None


class OperatorModel(ModelInfo):
    """One served artefact, and what an operator decided about it."""

    pinned: str | None = Field(description="the version that is served whatever the model's file has")
    split: Split | None
    shadow: Shadow | None
    in_memory: list[str] = Field(description="versions")


class OperatorModels(BaseModel):
    """The answer of GET /admin/models."""

    default: str
    models: list[OperatorModel]


class ReloadReport(BaseModel):
    """What one look at the models' folder found; names of models."""

    added: list[str]
    changed: list[str]
    removed: list[str]
    refused: dict[str, str] = Field(description="name -> why its changed file is not served")


class RollbackRequest(BaseModel):
    """The body of a rollback."""

    version: str | None = Field(None, description="default: the one that was served before")


class SplitRequest(BaseModel):
    """The body of a traffic split."""

    to: str = Field(description="a model, or a version of this one")
    percent: float = Field(ge=0, le=100)


class ShadowRequest(BaseModel):
    """The body of a shadow."""

    to: str = Field(description="a model, or a version of this one")


MODELS: tuple[type[BaseModel], ...] = (
    OperatorModel,
    OperatorModels,
    ReloadReport,
    RollbackRequest,
    ShadowRequest,
    SplitRequest,
)


def paths() -> JsonObject:
    """The operations below /admin."""
    found: JsonObject = {
        "/admin/models": {"get": _operation("operatorModels", "Everything that is served", "OperatorModels")},
        "/admin/reload": {"post": _operation("reload", "Look for new files, and new keys, now", "ReloadReport")},
    }
    for action, methods in _ACTIONS.items():
        place = found[f"/admin/models/{{name}}{action}"] = {"parameters": [reference("parameters", "name")]}
        for method, (name, summary, body) in methods.items():
            place[method] = _operation(name, summary, "OperatorModel", body)
    return found


_ACTIONS: dict[str, dict[str, tuple[str, str, str | None]]] = {
    ":rollback": {"post": ("rollback", "Serve an older version, and stay with it", "RollbackRequest")},
    ":unpin": {"post": ("unpin", "Follow the model's file again", None)},
    "/split": {
        "put": ("setSplit", "Let another model, or version, answer a share of the requests", "SplitRequest"),
        "delete": ("clearSplit", "End the split", None),
    },
    "/shadow": {
        "put": ("setShadow", "Let another model, or version, see the requests, too", "ShadowRequest"),
        "delete": ("clearShadow", "End the shadow", None),
    },
}
"""What follows a model's path -> method -> name, summary and body of the operation."""

_NO_BODY_NEEDED = frozenset({"RollbackRequest"})


def _operation(name: str, summary: str, answer: str, body: str | None = None) -> JsonObject:
    more = (400, 408, 413, 422) if body else ()
    found = operation(name, summary, _TAG, json_answer(answer, summary), *more, 503, 504)
    if body:
        content = {"application/json": {"schema": reference("schemas", body)}}
        found["requestBody"] = {"required": body not in _NO_BODY_NEEDED, "content": content}
    return guarded(found, admin=True)
