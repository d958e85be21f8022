"""From images and a model's name to the answer, free of transport."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from serve.repository import Repository, Served
from serve.schema import Accuracy, ImagePrediction, LabelProbability, ModelInfo, ModelsResponse, PredictResponse
from zoo.card import Input
from zoo.errors import ImageError
from zoo.image import preprocess
from zoo.predictor import Prediction

__all__ = ["Picture", "describe", "predict"]

Picture = tuple[str, Callable[[], bytes]]
"""An image's name, for errors, and how to get its bytes: they are read when their turn comes."""

_CHUNK = 8
"""Images of one inference; more would not be faster on a CPU, but take more memory, which ONNX Runtime keeps."""


def predict(
    repository: Repository, pictures: Sequence[Picture], *, model: str | None, top: int, max_pixels: int
) -> PredictResponse:
    """Answer every picture with the `top` most probable labels of `model` (None: the default).

    Raises:
        UsageError: there is no such model.
        ArtefactError: the model cannot be loaded, or failed its golden self-check.
        ImageError: a picture cannot be decoded or has more than `max_pixels` pixels; names the picture.
    """
    served = repository.get(model)
    predictor = served.predictor()
    spec = predictor.card.use.input
    predictions: list[ImagePrediction] = []
    numbered = enumerate(pictures, start=1)
    while chunk := list(itertools.islice(numbered, _CHUNK)):
        inputs = np.stack([_prepare(picture, index, len(pictures), spec, max_pixels) for index, picture in chunk])
        predictions += map(_answer, predictor.answers(predictor.probabilities(inputs), top=top))
    return PredictResponse(model=served.name, digest=predictor.digest, predictions=predictions)


def _prepare(picture: Picture, index: int, total: int, spec: Input, max_pixels: int) -> npt.NDArray[np.float32]:
    name, read = picture
    try:
        return preprocess(read(), spec, max_pixels=max_pixels)
    except ImageError as error:
        place = f"image {index} of {total}, " if total > 1 else "image "
        raise ImageError(f"{place}{name!r:.80}: {error}") from error


def _answer(prediction: Prediction) -> ImagePrediction:
    pairs = zip(prediction.labels, prediction.probabilities, strict=True)
    return ImagePrediction(
        label=prediction.labels[0],
        probabilities=[LabelProbability(label=label, probability=probability) for label, probability in pairs],
    )


def describe(repository: Repository) -> ModelsResponse:
    """Every model of the repository. Reads, once, the files that are not loaded, for their digests."""
    models = [_describe(served) for served in repository.models.values()]
    return ModelsResponse(default=repository.default, models=models)


def _describe(served: Served) -> ModelInfo:
    found = served.validation
    return ModelInfo(
        name=served.name,
        file=f"{served.path.parent.name}/{served.path.name}",
        digest=served.digest(),
        bytes=served.bytes,
        precision=served.card.inform.precision if served.card else None,
        classes=len(served.card.use.labels) if served.card else None,
        accuracy=Accuracy(dataset=found.dataset, split=found.split, n=found.n, top1=found.top1) if found else None,
        loaded=served.loaded,
        error=served.reason,
    )
