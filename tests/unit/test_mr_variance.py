"""`benchmarks/mr_variance.py`: the shares of the parts of R* in the variance of MR within groups."""

from __future__ import annotations

import pytest

from benchmarks.mr_variance import shares


def record(candidate, bleu, asked, *, group=0, turn=1, phase="train"):
    parts, reward = {"bleu": bleu, "asked": asked}, 2 * bleu + asked
    return {"phase": phase, "turn": turn, "step": 0, "group": group, "candidate": candidate} | {
        "parts": parts,
        "reward": reward,
    }


def test_shares_by_hand():
    """Two futures of each candidate: MR 1 and 5, of which BLEU gives 0 and 3, asking 1 and 2."""
    futures = [record(0, 0, 0), record(0, 0, 2), record(1, 1, 2), record(1, 2, 2)]
    other = [record(0, 9, 0, turn=2), record(1, 0, 0, turn=2), record(0, 0, 9, phase="test")]  # not to be read
    count, found = shares([*futures, *other], {"bleu": 2.0, "asked": 1.0}, last=2)
    assert count == 1 and found == pytest.approx({"bleu": 3 / 4, "asked": 1 / 4})


def test_groups_are_compared_within_themselves():
    low, high = ([record(c, base + c, 0, group=base) for c in (0, 1)] for base in (0, 100))
    count, found = shares([*low, *high], {"bleu": 2.0, "asked": 1.0}, last=2)
    assert count == 2 and found == pytest.approx({"bleu": 1, "asked": 0})
