"""What a measured row says, kind by kind: one model for each file of rows.

A field with a default came later than some rows that are kept: it may be missing where rows are read, and never where
they are written (:func:`unset`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, JsonValue

__all__ = [
    "Ablation",
    "Accuracy",
    "Attack",
    "Compare",
    "Environment",
    "Fault",
    "Latency",
    "Listing",
    "Load",
    "Pytest",
    "Race",
    "Row",
    "Score",
    "Serving",
    "Start",
    "Training",
    "unset",
]

Count = Annotated[int, Field(ge=0)]
Number = Annotated[int, Field(ge=1)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
"""SHA-256."""
Share = Annotated[float, Field(ge=0, le=1)]
Time = Annotated[float, Field(ge=0)]
"""Milliseconds or seconds, as the field's name says."""
Rate = Annotated[float, Field(gt=0)]
Rounds = Annotated[list[Time], Field(min_length=1)]
"""One number per round, in their order."""
Counts = dict[str, Count]
Details = dict[str, JsonValue]


class _Part(BaseModel):
    """Nothing unknown, nothing converted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Environment(_Part):
    """As zoo.artefact.environment.environment makes it: the machine, versions and commit."""

    cpu: str
    flags: list[str]
    """Instruction sets."""
    cores: Number
    memory_gb: Number | None = None
    system: str
    provider: str
    versions: dict[str, str]
    commit: str | None


class _LoadGenerator(Environment):
    of: Literal["the load generator"]


class Row(_Part):
    """What every row says."""

    environment: Environment
    time: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d")]
    """UTC, ISO 8601."""


class _Run(Row):
    run: Annotated[str, Field(min_length=1)]
    """Identifies what was measured together."""


class _OfFile(_Run):
    artefact: str
    file: str
    digest: Digest
    graph: Digest | None = None
    """Of an ONNX file's network, its card left out; None of a checkpoint."""


class _Engine(_Part):
    engine: str
    engine_reason: str
    hint: str | None = None
    """The precision that the engine computes in where the graph says float32."""


class _Busy(_Part):
    load_average: Time | None = None
    """How many tasks wanted a processor in the minute before; None where the system does not tell, as Windows."""


class _Known(_OfFile):
    bytes: Count
    macs: Count
    precision: str
    role: Literal["model", "control"]
    trained_on: str | None
    refit_of: str | None = None
    """The artefact whose settings were trained once more, on validation images, too."""


class _Interval(_Part):
    top1: Share
    low: Share
    high: Share
    """Wilson 95 % interval of top1."""


class _Timed(_Part):
    batch: Number
    threads: Number
    rounds: Number
    warmup: Count
    n: Number
    p50_ms: Time
    low_ms: Time | None
    high_ms: Time | None
    p95_ms: Time
    p99_ms: Time
    round_ms: Rounds


class Accuracy(_Known, _Engine, _Interval):
    """Top-1 of an ONNX file, by its predictor."""

    dataset: str
    dataset_digest: Digest
    split: str
    n: Number
    top5: Share | None


class Latency(_Known, _Engine, _Timed, _Busy):
    """Latency of an ONNX file, in turns with others of the same run."""

    seconds: Rate
    """Measured time of a round."""


class Pytest(_OfFile, _Engine, _Timed):
    """What `pytest --benchmark` measures of an ONNX file."""

    model: str


class Compare(_OfFile, _Timed, _Busy):
    """A network in one of the runtimes there are."""

    load_average: Time | None = Field(default=None, validation_alias=AliasChoices("load_average", "load"))
    engine: str
    hint: str
    family: str
    form: str
    variant: str
    precision: str
    weights: Literal["trained", "random"]
    bytes: Count
    macs: Count
    parameters: Count
    difference: Time
    """The largest one from the exported graph's logits."""
    dataset: str | None
    split: str | None
    pictures: Number | None
    top1: Share | None
    low: Share | None
    high: Share | None
    agreement: Share | None
    convert_seconds: Time
    setup_seconds: Time
    startup_seconds: Time
    first_ms: Time
    peak_mb: Time
    reference: str | None
    ratio: Time | None
    ratio_low: Time | None
    ratio_high: Time | None
    pace_seconds: Time
    paced_p50_ms: Time
    paced_low_ms: Time | None
    paced_high_ms: Time | None
    paced_p95_ms: Time
    paced_round_ms: Rounds


class Serving(_OfFile, _Busy):
    """The server, or the same pipeline in process, under one load."""

    engine: str | None = None
    engine_reason: str | None = None
    hint: str | None = None
    way: str
    load: str
    connections: Count
    seconds: Rate
    rounds: Number
    round_images_per_s: list[Time] | None = None
    images_per_s: Time
    ratio: Time | None
    n: Count
    p50_ms: float
    p95_ms: float
    p99_ms: float
    """Not a number where nothing was answered."""
    status: Counts
    errors: Counts
    image: Details
    detail: Details


class Load(_Run, _Busy):
    """A running server in one of MLPerf's scenarios."""

    environment: _LoadGenerator
    url: str
    model: str
    version: str
    digest: Digest
    images: Details
    settings: Details
    scenario: str
    metric: str
    value: Time
    unit: str
    valid: bool
    seconds: Time
    n: Number
    p50_ms: Time
    p90_ms: Time
    p99_ms: Time
    p99_9_ms: Time | None
    max_ms: Time
    histogram: str
    """Of all latencies, as HdrHistogram encodes it."""
    status: Counts
    errors: Counts
    detail: Details


class Score(_OfFile, _Busy):
    """Bulk scoring beside loops that do nothing else."""

    engine: str
    engine_reason: str | None = None
    hint: str | None = None
    source: str | None = None
    executor: str | None = None
    workers: Number
    threads: Number
    batch: Number
    n: Number
    rounds: Number
    round_images_per_s: dict[str, Rounds] | None = None
    """Of scoring and of each loop."""
    images_per_s: Rate
    references: dict[str, Rate]
    ratio: Rate
    ratio_low: Rate | None
    ratio_high: Rate | None
    peak_mb: Time
    worker_peak_mb: Time


class Listing(_OfFile, _Engine, _Busy):
    """The start of bulk scoring where a folder, simulated, holds very many images."""

    source: str
    """The folder whose images come again and again."""
    names: Number
    workers: Number
    threads: Number
    batch: Number
    first_seconds: Time
    """Since the process began, until the first images were scored."""
    listed_seconds: Time
    """Until all names were listed, where the run ends."""
    n: Number
    """Images that were scored by then."""
    peak_mb: Rounds
    """The most memory of the process that lists, at the first scored images and after each tenth of the names."""


class Fault(_Run):
    """A fault that the server must survive."""

    fault: str
    n: Count
    answers: Counts
    ok: bool
    detail: list[str]


class Attack(_Run):
    """An attack beside honest clients."""

    attack: str
    seconds: Rate
    honest_per_second: Time
    n: Count
    failed: Count
    status: Counts
    errors: Counts
    p50_alone_ms: Time
    p99_alone_ms: Time
    p50_ms: Time | None
    p99_ms: Time | None
    times: Time
    attackers: Counts
    grew_mb: float
    same_worker: bool
    ok: bool


class Start(_OfFile, _Busy):
    """Starts of the server, each with a cache of its own or with what an earlier one has noted."""

    models: Number
    bytes: Count
    """Of their files together."""
    rounds: Number
    known: bool
    """Whether the files were checked before."""
    ready_seconds: Rounds
    """Since the command, until it is ready."""
    predicted_seconds: Rounds
    worker_mb: dict[str, Time]
    supervisor_mb: dict[str, Time]


class Training(_Run, _Busy):
    """The speed of training, of one network and variant."""

    part: str
    variant: str
    model: str
    data: str
    image_size: Number | list[Number]
    images: Number
    n: Number
    validation_n: Number
    batch: Number
    epochs: Number
    threads: Number
    rounds: Number
    setup_seconds: Time
    seconds: Time
    round_seconds: Rounds
    images_per_s: Rate
    ratio: Rate
    """Time relative to the part's first variant: timm as it comes, or one evaluation."""
    ratio_kept: Rate | None = None
    """Relative to timm with the allocator set up; None where that was not measured."""
    user_seconds: Time | None = None
    system_seconds: Time | None = None


class Race(_Run, _Interval, _Busy):
    """A training program in one round of a race."""

    contestant: str
    round: Count
    rounds: Number
    seed: Count
    settings: list[str]
    allocator: str
    minutes: Rate | None
    data: str
    data_digest: Digest
    model: str
    weights_digest: Digest
    image_size: Number
    batch: Number
    threads: Number
    n: Number
    validation_n: Number
    epochs: Number
    curve: list[tuple[Time, Share]]
    """Seconds since the process began, and top-1, of each validation."""
    best_top1: Share
    seconds: Time
    user_seconds: Time
    system_seconds: Time
    peak_mb: Time
    images_per_s: Rate | None


class Ablation(Row, _Interval):
    """A run of a recipe whose runs differ in one setting from its first: what it reaches on validation images."""

    recipe: str
    name: str
    changes: dict[str, list[JsonValue]]
    """Settings other than the first run's: that one's value, and this one's."""
    digest: Digest
    """Of the checkpoint."""
    dataset: str
    dataset_digest: Digest
    n: Number
    epochs: Number
    seconds: Time
    cpu_seconds: Time
    device: str


def unset(part: BaseModel, *, within: str = "") -> Iterator[str]:
    """Names of fields that were not given to a row, or to a part of it."""
    for name in type(part).model_fields:
        value = getattr(part, name)
        if name not in part.model_fields_set:
            yield within + name
        elif isinstance(value, BaseModel):
            yield from unset(value, within=f"{within}{name}.")
