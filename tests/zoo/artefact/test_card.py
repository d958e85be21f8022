"""The contract: JSON round trip, refusals, and the order of stages."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.zoo.factories import make_card, make_draft, make_input, photo_input
from zoo.artefact.card import (
    MAX_BYTES,
    Build,
    Card,
    Draft,
    Golden,
    Inform,
    Input,
    LineageEntry,
    Lora,
    Metrics,
    Output,
    Reference,
    Resize,
    Use,
    advance,
    allow,
    from_json,
    to_json,
)
from zoo.base.errors import ArtefactError, CardError

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
SHARES = st.floats(0, 1)
COUNTS = st.integers(0, 2**40)
TEXTS = st.text(max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | COUNTS | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=4,
)
TABLES = st.dictionaries(TEXTS, VALUES, max_size=3)


@st.composite
def inputs(draw: st.DrawFn) -> Input:
    colour = draw(st.sampled_from(["RGB", "L"]))
    channels = 3 if colour == "RGB" else 1
    size = draw(st.tuples(st.integers(1, 512), st.integers(1, 512)))
    kernel = draw(st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos"]))
    stretch = Resize(rule="stretch", filter=kernel), "none"
    shorter = Resize(rule="shorter", edge=max(size) + draw(st.integers(0, 99)), filter=kernel), "centre"
    cover = Resize(rule="cover", edge=min(size) + draw(st.integers(0, 99)), filter=kernel), "centre"
    resize, crop = draw(st.sampled_from([stretch, shorter, cover]))
    shares = dict.fromkeys(("agreement", "top1_before", "top1_after", "max_drop"), SHARES)
    draft = st.builds(Draft, dataset=TEXTS, split=TEXTS, digest=TEXTS, n=st.integers(1, 2**40), **shares)
    return Input(
        colour=colour,
        size=size,
        resize=resize,
        crop=crop,
        mean=tuple(draw(st.lists(NUMBERS, min_size=channels, max_size=channels))),
        std=tuple(draw(st.lists(st.floats(0.01, 9), min_size=channels, max_size=channels))),
        exif=draw(st.booleans()),
        jpeg_draft=draw(st.none() | draft),
        range=draw(st.none() | st.floats(0.01, 1e9)),
    )


@st.composite
def cards(draw: st.DrawFn) -> Card:
    labels = tuple(draw(st.lists(TEXTS, min_size=2, max_size=5, unique=True)))
    golden = st.builds(Golden, rule=TEXTS, seed=COUNTS, probabilities=st.tuples(*[SHARES for _ in labels]))
    reference = st.builds(Reference, mean_confidence=SHARES, histogram=st.dictionaries(TEXTS, COUNTS, max_size=3))
    metrics = st.builds(
        Metrics, dataset=TEXTS, split=TEXTS, n=COUNTS, top1=SHARES, low=SHARES, high=SHARES, top5=st.none() | SHARES
    )
    stage = st.builds(
        LineageEntry,
        stage=TEXTS,
        config=TABLES,
        parent=st.none() | TEXTS,
        seed=st.none() | COUNTS,
        summary=TABLES,
        seconds=NUMBERS,
    )
    lora = st.builds(
        Lora, targets=st.lists(TEXTS, max_size=3).map(tuple), rank=COUNTS, alpha=NUMBERS, rslora=st.booleans()
    )
    return Card(
        name=draw(TEXTS),
        build=Build(
            architecture=draw(TEXTS),
            arguments=draw(TABLES),
            heads=draw(st.dictionaries(TEXTS, COUNTS, max_size=2)),
            dropped=draw(st.lists(TEXTS, max_size=2).map(tuple)),
            lora=draw(st.none() | lora),
        ),
        use=Use(
            labels=labels,
            input=draw(inputs()),
            temperature=draw(st.floats(0.01, 100)),
            golden=draw(st.none() | golden),
            reference=draw(st.none() | reference),
        ),
        inform=Inform(
            opset=draw(st.none() | COUNTS),
            parameters=draw(COUNTS),
            macs=draw(COUNTS),
            bytes=draw(COUNTS),
            licence=draw(st.none() | TEXTS),
            metrics=tuple(draw(st.lists(metrics, max_size=2))),
        ),
        lineage=tuple(draw(st.lists(stage, max_size=2))),
    )


@given(cards())
def test_json_round_trip(card):
    text = to_json(card)
    assert from_json(text, where="here") == card
    assert to_json(from_json(text, where="here")) == text


@given(st.text(max_size=60) | VALUES.map(json.dumps))
def test_other_text_is_refused_with_a_card_error(text):
    with pytest.raises(CardError, match=r"^here: "):
        from_json(text, where="here")


@given(st.data())
def test_a_changed_value_is_read_or_refused_with_a_card_error(data):
    document = json.loads(to_json(make_card(stages=("train",))))
    table = document
    for _ in range(data.draw(st.integers(0, 3))):
        tables = [value for value in table.values() if isinstance(value, dict) and value]
        table = data.draw(st.sampled_from(tables)) if tables else table
    table[data.draw(st.sampled_from(sorted(table)))] = data.draw(VALUES | st.sampled_from([10**400, [10**400] * 3]))
    try:
        card = from_json(json.dumps(document), where="here")
    except CardError as error:
        assert str(error).startswith("here: ")
    else:
        assert from_json(to_json(card), where="here") == card


def test_cards_from_before_jpeg_files_were_decoded_small():
    document = json.loads(to_json(make_card()))
    assert document["use"]["input"].pop("jpeg_draft") is None
    assert from_json(json.dumps(document), where="here") == make_card()


def test_a_card_without_a_range_reads_as_it_did_before():
    assert "range" not in json.loads(to_json(make_card()))["use"]["input"]
    ranged = make_card(spec=make_input(range=4095))
    assert json.loads(to_json(ranged))["use"]["input"]["range"] == 4095
    assert from_json(to_json(ranged), where="here") == ranged


def test_a_card_without_dropped_blocks_reads_as_it_did_before():
    card = make_card()
    assert "dropped" not in json.loads(to_json(card))["build"]
    shorter = dataclasses.replace(card, build=dataclasses.replace(card.build, dropped=("layer1.1",)))
    assert json.loads(to_json(shorter))["build"]["dropped"] == ["layer1.1"]
    assert from_json(to_json(shorter), where="here") == shorter


def test_keys_are_sorted_and_letters_stay_letters():
    text = to_json(make_card(["Käfer", "猫"]))
    assert json.dumps(json.loads(text), sort_keys=True, ensure_ascii=False) == text
    assert "Käfer" in text and "猫" in text


def test_a_missing_card_names_file_key_and_command():
    with pytest.raises(CardError) as caught:
        from_json(None, where="cat.onnx")
    for part in ("cat.onnx", "`zoo.card`", "`pocketzoo train`", "`pocketzoo export`"):
        assert part in str(caught.value)


def _with(**changes: object) -> str:
    document = json.loads(to_json(make_card()))
    for place, value in changes.items():
        *path, last = place.split("__")
        table = document
        for key in path:
            table = table[key]
        table[last] = value
    return json.dumps(document)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (_with(schema="zoo.card/2"), r"schema 'zoo\.card/2', this version reads 'zoo\.card/1'"),
        ("[]", r"has the schema None"),
        ("{", r"not valid JSON"),
        ("[" * 100_000, r"not valid JSON"),
        (_with(nmae="x"), r"card: unknown key 'nmae'; did you mean name"),
        (_with(use__lables=[]), r"card\.use: unknown key 'lables'; did you mean labels"),
        (_with(name=3), r"card\.name: expected str, got 3"),
        (_with(use__labels="cat"), r"card\.use\.labels: expected tuple, got 'cat'"),
        (_with(use__labels=["cat"]), r"use\.labels: expected at least two distinct labels, got \['cat'\]"),
        (_with(use__labels=["cat", "cat"]), r"at least two distinct labels"),
        (_with(use__temperature=0), r"use\.temperature: expected a positive number, got 0"),
        (_with(use__input__scale=math.nan), r"NaN is not a JSON number"),
        (_with(use__input__scale=math.inf), r"Infinity is not a JSON number"),
        (_with().replace('"temperature": 1.0', '"temperature": 1e999'), r"1e999 is too large a number"),
        (_with(name="\ud800"), r"surrogates not allowed"),
        (_with(use__golden={"rule": "r", "seed": 0, "probabilities": [1.0]}), r"1 probabilities for 3 labels"),
        (_with(inform__parameters=1.5), r"card\.inform\.parameters: expected int, got 1\.5"),
        (_with(use__input={}), r"card\.use\.input: key 'colour' is missing"),
    ],
)
def test_what_is_refused(text, message):
    with pytest.raises(CardError, match=r"^cat\.onnx: .*" + message):
        from_json(text, where="cat.onnx")


def test_size_cap_both_ways():
    card = dataclasses.replace(make_card(), name="x" * MAX_BYTES)
    with pytest.raises(CardError, match=f"bytes, at most {MAX_BYTES} are allowed"):
        to_json(card)
    with pytest.raises(CardError, match=f"^here: .*more than {MAX_BYTES} bytes"):
        from_json("x" * (MAX_BYTES + 1), where="here")


@pytest.mark.parametrize("value", [math.nan, math.inf, object(), "\ud800"])
def test_only_json_is_written(value):
    card = make_card(arguments={"value": value})
    with pytest.raises(CardError, match="card of 'tiny': "):
        to_json(card)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Resize(rule="fit"), r"resize\.rule: expected 'shorter', 'cover' or 'stretch', got"),
        (lambda: Resize(rule="shorter"), r"resize\.edge: given exactly when"),
        (lambda: Resize(rule="stretch", edge=8), r"resize\.edge: given exactly when"),
        (lambda: Resize(rule="stretch", filter="box"), r"resize\.filter: expected a Pillow filter name, got 'box'"),
        (lambda: dataclasses.replace(make_input(), colour="HSV"), r"colour: expected 'RGB' or 'L', got 'HSV'"),
        (lambda: make_input(mean=(0.5,)), r"RGB wants 3 values of mean and std"),
        (lambda: make_input(std=(1.0, 0.0, 1.0)), r"std: expected positive values"),
        (lambda: make_draft(n=0), r"jpeg_draft\.n: expected at least one image, got 0"),
        (lambda: make_draft(agreement=1.5), r"jpeg_draft\.agreement: expected a fraction, got 1\.5"),
        (lambda: make_draft(top1_after=-0.1), r"jpeg_draft\.top1_after: expected a fraction"),
        (lambda: make_input(0), r"size: expected \(height, width\) in pixels, got \(0, 0\)"),
        (lambda: make_input(crop="left"), r"crop: expected 'centre' or 'none', got 'left'"),
        (lambda: make_input(crop="centre"), r"'shorter' and 'cover' go with the crop 'centre'"),
        (lambda: photo_input(32, 31), r"resize\.edge: 31 is less than the crop \(32, 32\)"),
        (
            lambda: make_input(resize=Resize(rule="cover", edge=31), crop="centre"),
            r"resize\.edge: 31 is less than the crop \(32, 32\)",
        ),
        (lambda: make_input(range=0.0), r"range: expected the positive sample that is white, got 0\.0"),
        (lambda: make_input(range=float("inf")), r"range: expected the positive sample that is white, got inf"),
        (lambda: make_input(layout="NHWC"), r"expected float32 NCHW, got float32 NHWC"),
        (lambda: Output(kind="probabilities"), r"output\.kind: expected 'logits'"),
    ],
)
def test_values_that_contradict_each_other(make, message):
    with pytest.raises(CardError, match=message):
        make()


STAGES = ("train", "merge", "prune", "recalibrate", "recover", "export", "quantize")
_FREE = {"train", "prune", "recalibrate", "recover", "export"}
ALLOWED = {
    (): _FREE,
    ("train",): _FREE,
    ("train", "merge"): _FREE,
    ("train", "prune"): _FREE,
    ("train", "prune", "recalibrate", "recover"): _FREE,
    ("train", "export"): {"quantize"},
    ("train", "merge", "prune", "recover", "export"): {"quantize"},
    ("train", "export", "quantize"): set(),
}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("done", ALLOWED, ids="-".join)
def test_order_of_stages(done, stage):
    card = make_card(stages=done)
    if stage in ALLOWED[done]:
        allow(card, stage)
    else:
        with pytest.raises(ArtefactError, match=r"^tiny: "):
            allow(card, stage)


@pytest.mark.parametrize("stage", STAGES)
def test_separate_adapters_allow_only_merging(stage):
    card = make_card(stages=("train",))
    card = dataclasses.replace(
        card, build=dataclasses.replace(card.build, lora=Lora(targets=("qkv",), rank=2, alpha=4.0))
    )
    if stage == "merge":
        allow(card, stage)
    else:
        with pytest.raises(ArtefactError, match=f"not merged yet; run `pocketzoo merge` before `{stage}`"):
            allow(card, stage)


@pytest.mark.parametrize(
    ("done", "stage", "message"),
    [
        (("train",), "merge", "there are no LoRA adapters to merge"),
        (("train",), "quantize", "run `pocketzoo export` first"),
        (("train", "export"), "prune", "already exported to ONNX; `prune` wants the checkpoint"),
        (("train", "export", "quantize"), "quantize", "already quantized; .*, model.onnx beside it"),
        (("train", "export", "quantize"), "prune", "already quantized; `prune` wants an artefact from before"),
        (("train",), "distil", "unknown stage 'distil'"),
        (("import",), "import", "it can only be first"),
        (("train", "export"), "import", "it can only be first"),
    ],
)
def test_forbidden_stages_say_what_to_do_first(done, stage, message):
    with pytest.raises(ArtefactError, match=message):
        allow(make_card(stages=done), stage)


def _measured() -> Card:
    card = make_card(stages=("train",))
    metrics = Metrics(dataset="d", split="test", n=4, top1=0.5, low=0.1, high=0.9)
    use = dataclasses.replace(
        card.use,
        golden=Golden(rule="r", seed=0, probabilities=(1.0, 0.0, 0.0)),
        reference=Reference(mean_confidence=0.5, histogram={}),
        temperature=2.0,
    )
    return dataclasses.replace(card, use=use, inform=dataclasses.replace(card.inform, metrics=(metrics,)))


@pytest.mark.parametrize("stage", sorted(_FREE))
def test_advancing_appends_and_forgets_measurements(stage):
    card = _measured()
    entry = LineageEntry(stage=stage, config={"a": 1}, parent="0" * 64)
    after = advance(card, entry, name="smaller")
    assert (after.name, after.lineage) == ("smaller", (*card.lineage, entry))
    assert (after.inform.metrics, after.use.golden, after.use.reference) == ((), None, None)
    assert after.use.temperature == 2.0
    assert card.inform.metrics and card.use.golden and card.use.reference
    assert advance(card, entry).name == card.name


def test_advancing_wants_the_parents_digest():
    with pytest.raises(ArtefactError, match="stage 'prune' must record the digest of the file it read"):
        advance(_measured(), LineageEntry(stage="prune", config={}, parent=None))


def test_advancing_checks_the_order():
    with pytest.raises(ArtefactError, match="run `pocketzoo export` first"):
        advance(_measured(), LineageEntry(stage="quantize", config={}, parent="0" * 64))


def test_metrics_by_split():
    assert _measured().metrics("test") == _measured().inform.metrics[0]
    assert _measured().metrics("validation") is None
    assert make_input(7).shape == (3, 7, 7)


def test_a_refit_is_one_of_the_last_training():
    first = LineageEntry(stage="train", config={"refit": {"of": "a", "temperature": 1.0}}, parent=None)
    card = dataclasses.replace(make_card(), lineage=(first, dataclasses.replace(first, stage="export")))
    again = dataclasses.replace(card, lineage=(first, dataclasses.replace(first, config={"refit": None})))
    assert (card.refit_of, again.refit_of, make_card().refit_of) == ("a", None, None)
