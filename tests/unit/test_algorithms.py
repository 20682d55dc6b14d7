"""The loss of each algorithm by hand arithmetic: log-probabilities in, a number out; no model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from collab.config.algorithms import DPOConfig, GRPOConfig, PPOConfig, SFTConfig
from collab.conversation import Candidate, Conversation, Goal, Group, Reply
from collab.modules.base import Example, PolicyModule
from collab.modules.dpo import DPO
from collab.modules.grpo import GRPO
from collab.modules.packing import pack
from collab.modules.policy import PolicyOutput
from collab.modules.ppo import PPO, Episodes
from collab.modules.sft import SFT


def module(kind: type[PolicyModule], config: Any) -> PolicyModule:
    return kind(config, lambda: None, None, 1.0, 1)


def reply(*sampled: float) -> Reply:
    """A reply whose tokens had these log-probs when they were sampled."""
    return Reply("", tuple(range(len(sampled))), sampled, "stop", (7, 8))


def loss(
    kind: type[PolicyModule],
    config: Any,
    examples: Sequence[Example],
    logprobs: Sequence[float],
    ref: Sequence[float] | None = None,
    values: Sequence[float] | None = None,
) -> float:
    batch = pack([example.replies for example in examples], 1.0)
    output = PolicyOutput(
        torch.tensor(logprobs), torch.zeros(len(logprobs)), None if values is None else torch.tensor(values)
    )
    found = module(kind, config).loss(examples, batch, output, None if ref is None else torch.tensor(ref))
    assert found.shape == ()
    return found.item()


def test_sft_is_the_negative_log_likelihood_of_all_tokens() -> None:
    examples = [Example((reply(0, 0),)), Example((reply(0),))]
    assert loss(SFT, SFTConfig(), examples, [-0.5, -1.0, -2.0]) == pytest.approx(3.5)


def test_sft_learns_the_turns_of_a_conversation_together() -> None:
    def context(ids: tuple[int, ...], said: tuple[int, ...], mr: float = 1.0) -> Group:
        spoken = Reply("", said, (), "stop", ids)
        return Group(Conversation(Goal("g", "p", "r")), (Candidate(spoken, mr=mr),))

    first, third = context((1, 2), (3,)), context((1, 2, 3, 4, 5, 6), (7,))
    second = context((1, 2, 3, 4), (5,), mr=-1.0)
    other = context((1, 2, 9, 4), (5,))  # the same beginning, another reply
    found = module(SFT, SFTConfig()).examples([third, other, first, second])
    assert [[r.token_ids for r in example.replies] for example in found] == [[(3,), (5,), (7,)], [(5,)]]
    assert [example.contexts for example in found] == [3, 1]
    sft = module(SFT, SFTConfig(minimum_metric="mr", minimum_value=0.0))
    found = sft.examples([third, first, second])  # what the second says is read, but not learned
    assert [[r.token_ids for r in example.replies] for example in found] == [[(3,), (7,)]]
    assert sft.left_out([third, first, second]) == {"filtered_groups": 1}
    assert sft.units(found[0]) == 2


def test_dpo_compares_sums_over_the_tokens_of_each_reply() -> None:
    examples = [Example((reply(0, 0), reply(0))), Example((reply(0), reply(0, 0)))]
    # Better by 0.7 against -0.2 of the reference, so 0.9; worse by 0.5 against 1.1, so -1.6.
    policy, ref = [-0.1, -0.2, -1.0, -2.0, -1.0, -0.5], [-0.5, -0.7, -1.0, -0.4, -1.0, -0.5]
    expected = math.log(1 + math.exp(-0.5 * 0.9)) + math.log(1 + math.exp(0.5 * 1.6))
    assert loss(DPO, DPOConfig(beta=0.5), examples, policy, ref) == pytest.approx(expected)


def group(*rewards: float) -> Group:
    return Group(Conversation(Goal("g", "p", "r")), tuple(Candidate(reply(-1.0), mr=mr) for mr in rewards))


def test_the_gap_of_a_pair_is_that_of_the_best_to_the_worst() -> None:
    assert len(module(DPO, DPOConfig(minimum_gap=0.5)).examples([group(0.0, 0.1, 1.0)])) == 1


def test_advantages_are_exact_and_may_be_against_the_others() -> None:
    (example,) = module(GRPO, GRPOConfig(scale_by_std=False)).examples([group(0.1, 0.3, 0.5)])
    assert example.weights == pytest.approx((-0.2, 0.0, 0.2), abs=1e-12)
    (example,) = module(GRPO, GRPOConfig(scale_by_std=False, leave_one_out=True)).examples([group(0.1, 0.3, 0.5)])
    assert example.weights == pytest.approx((-0.3, 0.0, 0.3), abs=1e-12)


def test_transcripts_get_the_advantage_of_every_candidate_whichever_are_trained_on() -> None:
    grpo, compared = module(GRPO, GRPOConfig(scale_by_std=False, max_trained_candidates=2)), group(0.1, 0.3, 0.5)
    assert grpo.advantages(compared) == pytest.approx([-0.2, 0.0, 0.2], abs=1e-12)
    (example,) = grpo.examples([compared])
    assert [id(one) for one in example.replies] == [id(compared.candidates[index].reply) for index in (0, 2)]
    assert grpo.advantages(group(0.5, 0.5)) is None and grpo.examples([group(0.5, 0.5)]) == []
    assert module(DPO, DPOConfig()).advantages(compared) is None


# Two replies, of two tokens and one. Ratios to the sampled probabilities: 1.5, 1 and 0.5.
PAIR = [Example((reply(-1.0, -1.0), reply(-2.0)), weights=(1.0, -3.0))]
NOW = [-1.0 + math.log(1.5), -1.0, -2.0 + math.log(0.5)]
# Clipped at 1.2 and 0.8: a gain and a loss that go no further.
SURROGATES = [-1.2, -1.0, 3 * 0.8]


@pytest.mark.parametrize(
    ("aggregation", "expected", "units"),
    [("tokens", sum(SURROGATES), 3), ("sums", sum(SURROGATES), 2), ("sequences", (-1.2 - 1.0) / 2 + 2.4, 2)],
)
def test_grpo_weighs_tokens_or_sequences(aggregation: str, expected: float, units: int) -> None:
    config = GRPOConfig(loss_aggregation=aggregation)
    assert loss(GRPO, config, PAIR, NOW) == pytest.approx(expected, rel=1e-6)
    assert module(GRPO, config).units(PAIR[0]) == units


def test_grpo_adds_the_kl_to_the_reference() -> None:
    ref = [one + difference for one, difference in zip(NOW, (0.5, 0.0, -0.5), strict=True)]
    kl = (math.exp(0.5) - 1.5) + (math.exp(-0.5) - 0.5)
    assert loss(GRPO, GRPOConfig(kl_coef=0.1), PAIR, NOW, ref) == pytest.approx(sum(SURROGATES) + 0.1 * kl, rel=1e-6)
    assert loss(GRPO, GRPOConfig(kl_coef=0.1), PAIR, NOW) == pytest.approx(sum(SURROGATES), rel=1e-6)
    assert loss(GRPO, GRPOConfig(kl_coef=0.0), PAIR, NOW, ref) == pytest.approx(sum(SURROGATES), rel=1e-6)


def test_ppo_adds_the_clipped_loss_of_the_values() -> None:
    episodes = Episodes(
        PAIR[0].replies,
        values=torch.tensor([0.0, 1.0, 2.0]),
        advantages=torch.tensor([1.0, 1.0, -3.0]),
        returns=torch.tensor([1.0, 1.0, 1.0]),
    )
    config = PPOConfig(clip_epsilon=0.2, value_clip=0.5, value_coef=0.1)
    # Values 0.9, 0.75 and 2.5, of which the first is held at 0.5: the larger error counts.
    values = 0.5 * (0.5**2 + 0.25**2 + 1.5**2)
    found = loss(PPO, config, [episodes], NOW, values=[0.9, 0.75, 2.5])
    assert found == pytest.approx(sum(SURROGATES) + 0.1 * values, rel=1e-6)
    assert module(PPO, config).units(episodes) == 3
