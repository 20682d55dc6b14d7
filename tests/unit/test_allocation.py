"""Adaptive forward samples: where they go, that MR stays unbiased, and that all else is as without them."""

import asyncio
import math
import statistics
from collections.abc import Callable

import numpy as np
import pytest
from scripted import ScriptedModel, ScriptedUser, spoken

from collab.app.compose import load_config
from collab.callbacks.rollout import RolloutCallback, Simulation
from collab.chat.base import Sampling
from collab.config.schema import check
from collab.conversation import Candidate, Conversation, Goal, Key
from collab.rewards.reward import ConversationReward
from collab.simulation.allocation import allocate, mean_of_stages, pilot_samples, spend
from collab.simulation.rollout import Players, multiturn_reward
from collab.util.errors import BadInput

GOAL = Goal("mill", "A note.", "We meet at noon by the old mill.")
KEY = Key(1, split="train", goal="mill")


class LastNumber:
    """The last assistant message, read as a number; missing where it is none."""

    async def __call__(self, conversation: Conversation) -> float | None:
        text = conversation.assistant_texts[-1]
        return None if text == "none" else float(text)


def futures_of(script: Callable[[str, Key], float | str], names: str, *, num_samples: int, key: Key = KEY, **options):
    """Candidates of these one-letter names, whose futures score what `script(name, key)` says."""
    policy = ScriptedModel(lambda messages, request: str(script(messages[1].content, request)))
    user = ScriptedUser(lambda conversation, request: f"{request.stream().random():.9f}")
    found = asyncio.run(
        multiturn_reward(
            Conversation(GOAL, pending="user"),
            [spoken(name) for name in names],
            players=Players(policy, user, Sampling(48), max_turns=5),
            reward=ConversationReward({"number": (1.0, LastNumber())}),
            **{"window": 1, "num_samples": num_samples, "key": key, "adaptive": True} | options,
        )
    )
    return found, policy


def noisy(name: str, key: Key) -> float:
    """a and b are close to each other, z is far off; all scatter alike."""
    return {"a": 0.0, "b": 0.1, "z": 9.0}[name] + key.stream().normal()


def rewards(candidate: Candidate) -> list[float | None]:
    return [score.reward for score in candidate.scores]


# --- MR is unbiased --------------------------------------------------------------------------------------------------


def test_mr_is_unbiased_where_the_plain_mean_is_not():
    """Four candidates score 0 for certain; another one 0.8 on average, and its rare failures make it look open.

    After an unlucky pilot it gets many more samples and recovers; after a lucky one it gets few and keeps its luck: the
    plain mean is too high.
    """

    def script(name: str, key: Key) -> float:
        return 1.8 - key.stream().exponential() if name == "n" else 0.0

    runs = 500
    weighted, plain, counts = [], [], set()
    for run in range(runs):
        found, _ = futures_of(script, "n0000", num_samples=8, key=Key(run))
        weighted.append(found[0].mr)
        plain.append(statistics.fmean(rewards(found[0])))
        counts.add(len(found[0].futures))
    assert len(counts) > 4  # the pilot does decide

    def deviations(values: list[float]) -> float:
        return (statistics.fmean(values) - 0.8) / (statistics.stdev(values) / math.sqrt(runs))

    assert abs(deviations(weighted)) < 3
    assert deviations(plain) > 4  # the test would see it


def test_mr_is_the_mean_of_both_stages_under_fixed_weights():
    found, _ = futures_of(noisy, "abz", num_samples=5)
    for candidate in found:
        pilot, second = rewards(candidate)[:2], rewards(candidate)[2:]
        assert candidate.mr == pytest.approx(2 / 5 * statistics.fmean(pilot) + 3 / 5 * statistics.fmean(second))
    assert len({len(candidate.futures) for candidate in found}) > 1


def test_with_equal_shares_mr_is_the_plain_mean():
    scores = [0.5, -1.0, 2.0, 0.25, 4.0]
    size = pilot_samples(len(scores))
    mr = mean_of_stages([scores[:size], scores[size:]], (size / 5, 1 - size / 5))
    assert mr == pytest.approx(statistics.fmean(scores))


# --- who gets how many -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_samples", [4, 5, 8])
@pytest.mark.parametrize("group_size", [1, 2, 3, 8])
def test_the_total_is_kept_and_everyone_gets_some(group_size, num_samples):
    draws = np.random.default_rng(0)
    size = pilot_samples(num_samples)
    for scale in (0.0, 1.0, 100.0):
        pilots = draws.normal(size=(group_size, 1)) * scale + draws.exponential(size=(group_size, size))
        counts = allocate(pilots.tolist(), num_samples)
        assert sum(counts) == group_size * (num_samples - size)
        assert min(counts) >= 1 and max(counts) + size <= 2 * num_samples


def test_open_rankings_get_more():
    """0 and 0.1 differ by less than their noise; 5 and 9 are settled."""
    pilots = [[mean - 0.5, mean + 0.5, mean - 0.3, mean + 0.3] for mean in (0.0, 0.1, 5.0, 9.0)]
    first, second, *settled = allocate(pilots, 8)
    assert min(first, second) >= 2 * max(settled)


def test_candidates_that_scatter_more_get_more():
    pilots = [[-0.01, 0.01] * 2, [-1.0, 1.4] * 2, [0.19, 0.21] * 2]
    counts = allocate(pilots, 8)
    assert counts[1] > max(counts[0], counts[2])


def test_a_tie_of_two_scattering_pilots_is_open():
    tie = [[-1.0, 1.0], [1.0, -1.0], [49.0, 51.0]]
    counts = allocate(tie, 4)
    assert counts == [2, 2, 2] or min(counts[:2]) > counts[2]
    assert min(allocate([row * 2 for row in tie], 8)[:2]) > allocate([row * 2 for row in tie], 8)[2]


def test_where_nothing_scatters_all_get_the_same():
    assert allocate([[0.0] * 4, [1.0] * 4, [1.0] * 4], 8) == [4, 4, 4]


def test_each_sample_goes_where_the_fewest_pairs_stay_wrong():
    """Against every other way to spend: no move of one sample from one candidate to another does better."""
    gaps, variances = [[0.0, 0.3, 1.0], [0.3, 0.0, 0.7], [1.0, 0.7, 0.0]], [1.0, 0.2, 0.5]

    def wrong(counts: list[int]) -> float:
        error = [v * (0.25 / 4 + 0.25 / m) for v, m in zip(variances, counts, strict=True)]
        pairs = [(0, 1), (0, 2), (1, 2)]
        return sum(math.erfc(gaps[i][j] / math.sqrt(2 * (error[i] + error[j]))) / 2 for i, j in pairs)

    counts = spend(gaps, variances, 8)
    assert sum(counts) == 12
    every = [[a, b, 12 - a - b] for a in range(1, 11) for b in range(1, 12 - a)]
    assert wrong(counts) == pytest.approx(min(wrong(other) for other in every if max(other) <= 12))


def test_a_candidate_without_a_scored_pilot_counts_as_open():
    pilots = [[0.0, 0.2, 0.1, 0.0], [], [9.0, 9.1, 9.2, 9.0]]
    counts = allocate(pilots, 8)
    assert sum(counts) == 12 and counts[1] > counts[2]
    assert allocate([[], []], 4) == [2, 2]


# --- through multiturn_reward ----------------------------------------------------------------------------------------


def test_samples_go_to_the_open_pair_within_the_same_total():
    found, policy = futures_of(noisy, "abz", num_samples=8)
    played = [len(candidate.futures) for candidate in found]
    assert sum(played) == len(policy.requests) == 3 * 8
    assert min(played[:2]) > 8 > played[2] >= 5
    assert [len(candidate.scores) for candidate in found] == played
    assert [candidate.reply.text for candidate in found] == ["a", "b", "z"]


def test_the_first_samples_are_those_of_uniform_sampling():
    adaptive, policy = futures_of(noisy, "abz", num_samples=6)
    uniform, _ = futures_of(noisy, "abz", num_samples=12, adaptive=False)
    for one, other in zip(adaptive, uniform, strict=True):
        assert one.futures == other.futures[: len(one.futures)]
    assert len(set(policy.requests)) == len(policy.requests)  # no draw comes twice


def test_candidates_share_the_users_randomness_in_both_stages():
    found, _ = futures_of(noisy, "abz", num_samples=8)
    said = [[future.turns[1].user for future in candidate.futures] for candidate in found]
    longest = max(said, key=len)
    assert len(set(longest)) == len(longest)
    assert all(users == longest[: len(users)] for users in said)
    alone, _ = futures_of(noisy, "abz", num_samples=8, paired=False)
    said = [future.turns[1].user for candidate in alone for future in candidate.futures]
    assert len(set(said)) == len(said)


def test_missing_scores_are_left_out_of_their_stage():
    def script(name: str, key: Key) -> float | str:
        missing = {"p": key.sample < 2, "s": key.sample >= 2, "n": True, "k": False}[name]
        return "none" if missing else float(key.sample)

    (pilot, second, never, kept), _ = futures_of(script, "psnk", num_samples=4)
    assert pilot.mr == pytest.approx(statistics.fmean(range(2, len(pilot.futures))))
    assert second.mr == 0.5
    assert never.mr is None and len(never.futures) >= 3
    assert kept.mr == pytest.approx(0.5 * 0.5 + 0.5 * statistics.fmean(range(2, len(kept.futures))))


def test_the_simulation_of_a_run_is_adaptive_where_its_config_says_so():
    from collab.app import build
    from collab.chat.endpoints import Endpoints

    sampler = ["sampler.adaptive=true", "sampler.num_samples=4", "sampler.last_turns=1"]
    drafts = "task.metrics.bleu.options.finished_only=false"
    config = load_config("train", ["experiment=doc_edit", drafts, *sampler])
    simulation: Simulation = build.simulation(config, Endpoints(config), lambda: None)
    policy = ScriptedModel(lambda messages, key: " ".join(key.stream().permutation("Two keys lay by the gate".split())))
    goals = [Goal(f"g{i}", "", "Two keys lay by the gate. Ask Omar.", {"title": "keys"}) for i in range(3)]
    groups = asyncio.run(RolloutCallback(simulation, "").groups(policy, goals, 0, range(3)))
    for group in groups:
        assert sum(len(candidate.futures) for candidate in group.candidates) == 8 * 4
    assert any(len({len(candidate.futures) for candidate in group.candidates}) > 1 for group in groups)


# --- what cannot be adaptive -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("window", "num_samples", "said"),
    [
        (1, 3, "sampler.num_samples (3) must be at least 4 with sampler.adaptive=true"),
        (1, 1, "Set sampler.num_samples=4, or sampler.adaptive=false."),
        (0, 8, "sampler.window (0) must be at least 1 with sampler.adaptive=true"),
    ],
)
def test_too_few_samples_to_be_adaptive_are_refused(window, num_samples, said):
    overrides = ["sampler.adaptive=true", f"sampler.window={window}", f"sampler.num_samples={num_samples}"]
    with pytest.raises(BadInput) as error:
        check(load_config("train", overrides))
    assert said in str(error.value)
    check(load_config("evaluate", overrides), "evaluate")  # plays no futures
    with pytest.raises(BadInput) as error:
        futures_of(noisy, "ab", num_samples=num_samples, window=window)
    assert said in str(error.value)


def test_four_samples_may_be_adaptive():
    check(load_config("train", ["sampler.adaptive=true", "sampler.num_samples=4"]))
