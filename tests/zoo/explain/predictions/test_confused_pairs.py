"""Examples of confusions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tests.zoo.explain.answered import answered
from zoo.explain.predictions.confused_pairs import draw_pairs, examples
from zoo.explain.predictions.confusion import confusion_counts, most_confused

LOGITS = [[2, 0, 0], [3, 0, 0], [0, 5, 0], [1, 0, 0], [0, 0, 9]]
ANSWERS = answered(LOGITS, [1, 1, 0, 0, 1])


def test_the_most_confident_first(tmp_path: Path) -> None:
    assert ANSWERS.truth is not None
    pairs = most_confused(confusion_counts(ANSWERS.truth, ANSWERS.best, 3), ANSWERS.labels, 9)
    assert [(pair.true, pair.answered, pair.count) for pair in pairs] == [
        ("dog", "cat", 2),
        ("cat", "dog", 1),
        ("dog", "hen", 1),
    ]
    assert [examples(ANSWERS, pair, 6).tolist() for pair in pairs] == [[1, 0], [2], [4]]
    assert examples(ANSWERS, pairs[0], 1).tolist() == [1]
    path = tmp_path / "pairs.png"
    draw_pairs(path, ANSWERS, pairs)
    with Image.open(path) as image:
        assert np.asarray(image).std() > 0
        assert image.height > image.width
