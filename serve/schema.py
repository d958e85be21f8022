"""What the server answers, as pydantic models: they are the JSON, its documentation at `/`, and nothing else."""

from __future__ import annotations

from pydantic import BaseModel, Field

__all__ = ["Accuracy", "ImagePrediction", "LabelProbability", "ModelInfo", "ModelsResponse", "PredictResponse"]


class LabelProbability(BaseModel):
    """One label and how probable it is."""

    label: str
    probability: float = Field(description="between 0 and 1, calibrated on validation data")


class ImagePrediction(BaseModel):
    """The answer to one image."""

    label: str = Field(description="the most probable label")
    probabilities: list[LabelProbability] = Field(description="the most probable labels, best first")


class PredictResponse(BaseModel):
    """The answer of POST /predict."""

    model: str = Field(description="name of the artefact that answered, as in GET /models")
    digest: str = Field(description="SHA-256 of the artefact's file")
    predictions: list[ImagePrediction] = Field(description="one per image, in the order of the request")


class Accuracy(BaseModel):
    """Measured accuracy of exactly this file."""

    dataset: str
    split: str
    n: int = Field(description="number of images")
    top1: float = Field(description="fraction of images whose most probable label is right")


class ModelInfo(BaseModel):
    """One served artefact."""

    name: str = Field(description="what a request's `model` says")
    file: str = Field(description="path below the output folder")
    digest: str | None = Field(description="SHA-256 of the file; null if it cannot be read")
    bytes: int = Field(description="size of the file")
    precision: str | None = None
    classes: int | None = Field(None, description="number of labels")
    accuracy: Accuracy | None = Field(None, description="on the validation split, if it was measured")
    loaded: bool = Field(description="whether it is in memory; it is loaded by the first request that names it")
    error: str | None = Field(None, description="why it cannot be served")


class ModelsResponse(BaseModel):
    """The answer of GET /models."""

    default: str = Field(description="the model that answers when a request names none")
    models: list[ModelInfo]
