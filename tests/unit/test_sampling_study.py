"""`benchmarks/sampling.py` on pools whose ranking and noise are known."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

_PATH = Path(__file__).parents[2] / "benchmarks" / "sampling.py"
_SPEC = importlib.util.spec_from_file_location("sampling_study", _PATH)
study = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(study)

MEANS = np.array([0.0, 0.2, 0.4, 0.6])[:, None]
DRAWS = np.random.default_rng(0)
OF_THE_USER = DRAWS.normal(size=(1, 48))  # all candidates meet it alike
OF_THE_POLICY = DRAWS.normal(size=(4, 48))


def accuracy(pool, method: str, size: int, *, clear: bool = False) -> float:
    counts = study.replay(pool, 32, 40, 1)[method][size]
    return counts[2] / counts[3] if clear else counts[0] / counts[1]


@pytest.mark.parametrize("method", list(study.LINES))
def test_without_noise_every_method_is_right(method):
    assert accuracy(MEANS + np.zeros((4, 48)), method, 8) == 1


def test_pairs_that_tie_in_the_reference_are_left_out():
    pool = np.array([0.0, 0.0, 1.0])[:, None] + np.zeros((3, 48))
    assert study.replay(pool, 32, 5, 1)["paired"][1].tolist() == [10, 10, 10, 10]


def test_pairing_takes_the_users_noise_away_and_independence_keeps_it():
    pool = MEANS + OF_THE_USER
    assert accuracy(pool, "paired", 1) == 1
    assert accuracy(pool, "independent", 1) < 0.8
    assert study.correlation([pool]) == pytest.approx(1)


def test_pairing_is_worth_nothing_where_the_noise_is_the_policys():
    pool = MEANS + OF_THE_POLICY
    assert abs(accuracy(pool, "paired", 2) - accuracy(pool, "independent", 2)) < 0.1
    assert abs(study.correlation([pool])) < 0.15


def test_more_samples_are_right_more_often():
    pool = MEANS + 0.5 * OF_THE_POLICY
    assert accuracy(pool, "paired", 1) + 0.05 < accuracy(pool, "paired", 8)


def test_pairs_within_the_noise_of_the_reference_are_not_clear():
    """Gaps of 0, 1 and 1; a reference of 32 samples knows them to 0.25 each."""
    pool = np.array([0.0, 0.0, 1.0])[:, None] + OF_THE_POLICY[:3]
    pairs, clear = study.replay(pool, 32, 40, 1)["paired"][8][[1, 3]]
    assert pairs == 120 and 60 <= clear <= 100
    assert accuracy(pool, "paired", 8, clear=True) > accuracy(pool, "paired", 8) + 0.05


def test_a_tie_of_a_method_counts_one_half():
    pool = np.stack([np.zeros(48), np.arange(48) == 0]).astype(float)
    counts = study.replay(pool, 47, 1, 1)  # one column is left: no size fits
    assert counts["paired"] == {}
    right, pairs, *_ = study.replay(pool, 32, 300, 1)["paired"][1]
    # The one 1 among 48 is in the reference in two of three shuffles (else the reference ties); the method sees 0, 0.
    assert pairs == pytest.approx(200, abs=30) and right == pairs / 2


def test_what_is_needed_is_read_off_between_the_sizes():
    cells = {1: (0.6, 0, 1), 2: (0.7, 0, 1), 4: (0.8, 0, 1)}
    assert study.needed(cells, 0.75) == "3.0"
    assert study.needed(cells, 0.5) == "at most 1"
    assert study.needed(cells, 0.9) == "more than there are"
