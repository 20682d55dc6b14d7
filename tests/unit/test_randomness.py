"""Equal seeds give equal draws, also in later versions."""

from collab.chat.completions import seed_of
from collab.chat.structured import mark
from collab.randomness import RngKey

KEY = RngKey(1, split="train", goal="x", candidate=2)


def test_draws_seeds_and_marks_stay_what_they_are():
    assert KEY.stream().random() == 0.7031731982865094
    assert seed_of(KEY) == 1066420800 and mark(KEY) == "bee7320e"


def test_another_field_is_another_stream():
    others = [KEY.at(seed=2), KEY.at(goal="y"), KEY.at(turn=1), KEY.at(candidate=None), KEY.at(sample=1)]
    assert len({key.stream().random() for key in (KEY, *others)}) == 6
