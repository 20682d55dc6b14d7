"""A packed group gives the log-probs and the gradients of its sequences, each computed on its own."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from models import tiny_lm, with_adapter

from collab.conversation import Reply
from collab.lm.loading import checkpoint_activations
from collab.modules import policy as policy_module
from collab.modules.packing import PackedBatch, micro_batches, pack, packed_length
from collab.modules.policy import Policy

VOCABULARY = 97


def llama(**changes: Any) -> Any:
    return tiny_lm(VOCABULARY, **changes)


def group(prompt_length: int, lengths: Sequence[int], seed: int = 0) -> list[Reply]:
    draw = torch.Generator().manual_seed(100 * prompt_length + seed)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(VOCABULARY, (count,), generator=draw).tolist())

    prompt = ids(prompt_length)
    return [
        Reply("", ids(length), tuple((-torch.rand(length, generator=draw)).tolist()), "stop", prompt)
        for length in lengths
    ]


# Prompts and replies of different lengths, single tokens among them.
GROUPS = [group(9, [5, 1, 3]), group(4, [2, 7]), group(6, [1, 1])]


def turns(seed: int = 0) -> list[Reply]:
    """The replies of a conversation of three turns: each history is that of the turn before, its reply and more."""
    history: tuple[int, ...] = ()
    found = []
    for number, length in enumerate((3, 1, 4)):
        (drawn,) = group(5 + number, [length], seed)
        history += drawn.prompt_ids
        found.append(dataclasses.replace(drawn, prompt_ids=history))
        history += drawn.token_ids
    return found


def separate(lm: Any, groups: Sequence[Sequence[Reply]], temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs and entropies, each reply behind its prompt in a forward pass of its own, without mask or positions."""
    logprobs, entropies = [], []
    for reply in (reply for replies in groups for reply in replies):
        ids = torch.tensor([[*reply.prompt_ids, *reply.token_ids]])
        logits = lm(input_ids=ids, use_cache=False).logits[0, len(reply.prompt_ids) - 1 : -1]
        distribution = torch.distributions.Categorical(logits=logits.float() / temperature)
        logprobs.append(distribution.log_prob(torch.tensor(reply.token_ids)))
        entropies.append(distribution.entropy())
    return torch.cat(logprobs), torch.cat(entropies)


def gradients(module: torch.nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    module.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys() and found
    largest = max(gradient.abs().max() for gradient in expected.values())
    assert largest > 1e-3
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-5 * float(largest), rtol=1e-4, msg=name)


# --- equality with the plain computation -----------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("groups", [GROUPS, GROUPS[:1], [group(5, [1])], [turns(), *GROUPS, turns(1)]])
def test_logprobs_and_entropies_are_those_of_separate_sequences(groups: list[list[Reply]], temperature: float) -> None:
    lm = llama()
    output = Policy(lm, with_reference=False)(pack(groups, temperature))
    logprobs, entropies = separate(lm, groups, temperature)
    torch.testing.assert_close(output.logprobs, logprobs, atol=1e-5, rtol=0)
    torch.testing.assert_close(output.entropy, entropies, atol=1e-5, rtol=0)
    assert output.logprobs.requires_grad and not output.entropy.requires_grad


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("adapter", [True, False])
def test_gradients_are_those_of_separate_sequences(adapter: bool, attention: str) -> None:
    lm: Any = llama(attn_implementation=attention)
    lm = with_adapter(lm, 0.2) if adapter else lm
    policy = Policy(lm, with_reference=False)
    weights = torch.randn(sum(len(r.token_ids) for g in GROUPS for r in g), generator=torch.Generator().manual_seed(3))
    packed = gradients(lm, (policy(pack(GROUPS, 0.7)).logprobs * weights).sum())
    plain = gradients(lm, (separate(lm, GROUPS, 0.7)[0] * weights).sum())
    assert_same(packed, plain)
    assert all("lora_" in name for name in packed) == adapter


@pytest.mark.parametrize("adapter", [True, False])
def test_gradient_checkpointing_changes_nothing(adapter: bool) -> None:
    lm: Any = llama()
    lm = with_adapter(lm, 0.2) if adapter else lm
    batch = pack(GROUPS, 0.7)
    policy = Policy(lm, with_reference=False)
    expected = gradients(lm, policy(batch).logprobs.sum())
    checkpoint_activations(lm)
    calls: list[int] = []
    attention = next(module for name, module in lm.named_modules() if name.endswith("layers.0.self_attn"))
    attention.register_forward_hook(lambda *_: calls.append(1))
    policy.train()
    assert_same(gradients(lm, policy(batch).logprobs.sum()), expected)
    assert len(calls) == 2  # forward, and once more on the way back


@pytest.mark.parametrize("adapter", [True, False])  # a frozen head and one that learns
def test_the_size_of_chunks_changes_nothing(adapter: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    lm: Any = llama()
    lm = with_adapter(lm, 0.2) if adapter else lm
    policy, batch = Policy(lm, with_reference=False), pack(GROUPS, 0.7)
    whole = policy(batch)
    expected = gradients(lm, whole.logprobs.square().sum())
    monkeypatch.setattr(policy_module, "CHUNK", 3)
    assert len(batch.targets) > 3 * 3
    chunked = policy(batch)
    torch.testing.assert_close(chunked.logprobs, whole.logprobs, atol=1e-6, rtol=0)
    torch.testing.assert_close(chunked.entropy, whole.entropy, atol=1e-6, rtol=0)
    assert_same(gradients(lm, chunked.logprobs.square().sum()), expected)


def test_a_model_that_caps_its_logits_is_capped_here_too() -> None:
    lm = tiny_lm(VOCABULARY, "Gemma2", head_dim=8, initializer_range=0.3, final_logit_softcapping=2.0)
    logprobs = Policy(lm, with_reference=False)(pack(GROUPS, 0.7)).logprobs
    torch.testing.assert_close(logprobs, separate(lm, GROUPS, 0.7)[0], atol=1e-5, rtol=0)


# --- what is in a batch ----------------------------------------------------------------------------------------------


def test_a_packed_row_by_hand() -> None:
    replies = [
        Reply("", (20, 21, 22), (-0.1, -0.2, -0.3), "stop", (10, 11)),
        Reply("", (30,), (-0.4,), "stop", (10, 11)),
        Reply("", (40, 41), (-0.5, -0.6), "stop", (10, 11)),
    ]
    short = [Reply("", (50,), (-0.7,), "stop", (12,))]
    batch = pack([replies, short], 0.7)
    assert batch.input_ids.tolist() == [[10, 11, 20, 21, 40, 12]]  # what is only predicted is not fed
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 2, 0]]
    assert batch.targets.tolist() == [20, 21, 22, 30, 40, 41, 50]
    assert batch.predict_from.tolist() == [1, 2, 3, 1, 1, 4, 5]
    assert batch.sequence.tolist() == [0, 0, 0, 1, 2, 2, 3] and batch.num_sequences == 4
    assert batch.sampled_logprobs.tolist() == pytest.approx([-0.1, -0.2, -0.3, -0.4, -0.5, -0.6, -0.7])
    assert batch.ends == ((0, 2, 4, 4, 5), (5, 6, 6))
    assert batch.visible().int()[0].tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]


def test_the_turns_of_a_conversation_are_read_once() -> None:
    replies = turns()
    batch = pack([replies[::-1]], 1.0)  # in any order
    last = replies[-1]
    assert batch.input_ids[0].tolist() == [*last.prompt_ids, *last.token_ids[:-1]]
    assert batch.position_ids[0].tolist() == list(range(batch.input_ids.shape[1]))
    assert packed_length(replies) == batch.input_ids.shape[1] == 5 + 3 + 6 + 1 + 7 + 4 - 1
    assert batch.targets.tolist() == [token for reply in replies[::-1] for token in reply.token_ids]
    assert batch.sequence.tolist() == [0] * 4 + [1] + [2] * 3


def test_replies_of_other_prompts_do_not_go_into_one_group() -> None:
    with pytest.raises(AssertionError, match="share their history"):
        pack([[GROUPS[0][0], GROUPS[1][0]]], 1.0)
    first, second, _ = turns()
    with pytest.raises(AssertionError, match="as it stands in the history"):
        pack([[dataclasses.replace(first, token_ids=(1, 2, 3)), second]], 1.0)


def test_micro_batches_by_hand() -> None:
    lengths = [30, 10, 90, 12, 28, 11]
    assert micro_batches(lengths, 40) == [[0, 1], [2], [3, 4], [5]]  # one is over the budget
    assert micro_batches(lengths, 51) == [[0, 1], [2], [3, 4, 5]]
    assert micro_batches(lengths, 1) == [[n] for n in range(6)]
    assert micro_batches(lengths, sum(lengths)) == [[0, 1, 2, 3, 4, 5]]
    assert micro_batches([], 60) == []


def test_micro_batches_hold_every_group_once_within_the_budget() -> None:
    draw = torch.Generator().manual_seed(0)
    for budget in (1, 40, 100, 300):
        lengths = torch.randint(1, 120, (50,), generator=draw).tolist()
        batches = micro_batches(lengths, budget)
        assert [index for batch in batches for index in batch] == list(range(50))
        assert all(len(b) == 1 or sum(lengths[i] for i in b) <= budget for b in batches)


def test_a_packed_length_is_what_a_group_takes() -> None:
    for replies in GROUPS:
        assert packed_length(replies) == pack([replies], 1.0).input_ids.shape[1]


# --- who sees and teaches what ---------------------------------------------------------------------------------------


def owners(batch: PackedBatch, groups: Sequence[Sequence[Reply]]) -> torch.Tensor:
    """[T] number of the sequence that a position belongs to; -1, -2, ... of the first, second history."""
    found: list[int] = []
    number = 0
    for group_number, replies in enumerate(groups):
        found += [-1 - group_number] * len(replies[0].prompt_ids)
        for reply in replies:
            found += [number] * (len(reply.token_ids) - 1)
            number += 1
    assert len(found) == batch.input_ids.shape[1]
    return torch.tensor(found)


def test_a_candidate_depends_on_its_history_and_itself_alone() -> None:
    lm = llama()
    policy, batch = Policy(lm, with_reference=False), pack(GROUPS, 0.7)
    owner = owners(batch, GROUPS)
    embedded: list[torch.Tensor] = []

    def keep(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    lm.get_input_embeddings().register_forward_hook(keep)
    groups = [number for number, replies in enumerate(GROUPS) for _ in replies]
    for number in range(batch.num_sequences):
        logprobs = policy(batch).logprobs
        logprobs[batch.sequence == number].sum().backward()
        assert embedded[-1].grad is not None
        moved = embedded[-1].grad[0].abs().sum(-1) > 0
        assert torch.equal(moved, (owner == -1 - groups[number]) | (owner == number))


def test_what_a_sibling_says_does_not_matter() -> None:
    policy = Policy(llama(), with_reference=False)
    replies = GROUPS[0]
    other = dataclasses.replace(replies[0], token_ids=tuple((i + 1) % VOCABULARY for i in replies[0].token_ids))
    before = policy(pack([replies], 0.7)).logprobs
    after = policy(pack([[other, *replies[1:]]], 0.7)).logprobs
    length = len(other.token_ids)
    assert torch.equal(before[length:], after[length:]) and (before[:length] != after[:length]).all()


def test_only_candidate_tokens_are_targets() -> None:
    """The head's input gets a gradient at the positions that predict a candidate token, and nowhere else."""
    lm = llama()
    batch = pack(GROUPS, 0.7)
    hidden: list[torch.Tensor] = []

    def keep(module: Any, args: Any, output: Any) -> Any:
        output.last_hidden_state.retain_grad()
        hidden.append(output.last_hidden_state)

    policy = Policy(lm, with_reference=False)
    lm.get_decoder().register_forward_hook(keep)
    first = policy(batch).logprobs
    first.sum().backward()
    assert hidden[0].grad is not None
    taught = hidden[0].grad[0].abs().sum(-1) > 0
    assert taught.nonzero()[:, 0].tolist() == sorted(set(batch.predict_from.tolist()))
    history = owners(batch, GROUPS) < 0
    assert (taught & history).sum() == len(GROUPS)  # the last token of a prompt, which predicts a reply's first
    # Another target at one place changes the log-prob at that place alone.
    targets = batch.targets.clone()
    targets[4] = (targets[4] + 1) % VOCABULARY
    second = policy(dataclasses.replace(batch, targets=targets)).logprobs
    assert (first != second).nonzero()[:, 0].tolist() == [4]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_with_siblings_in_sight_it_would_be_wrong(attention: str) -> None:
    policy, batch = Policy(llama(attn_implementation=attention), with_reference=False), pack(GROUPS[:1], 0.7)
    right = policy(batch).logprobs
    first, history, *candidates = batch.ends[0]
    leaking = policy(dataclasses.replace(batch, ends=((first, history, candidates[-1]),))).logprobs
    same = (right - leaking).abs() < 1e-5
    # The first candidate, and first tokens, see nothing but the history either way; the third sees its siblings.
    assert same.tolist() == [True] * 5 + [True] + [True, False, False]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_without_an_explicit_mask_candidates_would_lose_their_history(
    attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = llama(attn_implementation=attention)
    policy, replies = Policy(lm, with_reference=False), group(9, [5, 4, 3])
    right = policy(pack([replies], 1.0)).logprobs
    monkeypatch.setattr(policy_module, "additive_masks", lambda *_: None)
    lost = policy(pack([replies], 1.0)).logprobs
    assert ((right - lost).abs() < 1e-5).tolist() == [True] * 5 + [True, False, False, False] + [True, False, False]
    # transformers takes positions that jump back for a new sequence: the third candidate sees itself alone.
    ids = torch.tensor([replies[2].token_ids[:-1]])
    alone = lm(input_ids=ids, position_ids=torch.tensor([[9, 10]])).logits[0].log_softmax(-1)
    expected = alone.gather(-1, torch.tensor(replies[2].token_ids[1:])[:, None])[:, 0]
    torch.testing.assert_close(lost[-2:], expected, atol=1e-5, rtol=0)


# --- the reference ---------------------------------------------------------------------------------------------------


def test_the_reference_of_an_adapter_is_the_base() -> None:
    base = llama()
    policy = Policy(with_adapter(copy.deepcopy(base), 0.2), with_reference=True)
    assert policy.reference is None
    batch = pack(GROUPS, 0.7)
    with torch.no_grad():
        reference = policy(batch, reference=True)
    output = policy(batch)
    torch.testing.assert_close(reference.logprobs, separate(base, GROUPS, 0.7)[0].detach(), atol=1e-5, rtol=0)
    torch.testing.assert_close(output.logprobs, separate(policy.lm, GROUPS, 0.7)[0], atol=1e-5, rtol=0)
    assert (output.logprobs - reference.logprobs).abs().max() > 0.1
    # Asking for the reference leaves the adapter trainable and the base frozen.
    output.logprobs.sum().backward()
    assert {"lora_" in n for n, p in policy.named_parameters() if p.grad is not None} == {True}


def test_full_fine_tuning_keeps_a_frozen_copy() -> None:
    lm = llama()
    policy, batch = Policy(lm, with_reference=True), pack(GROUPS, 0.7)
    before = policy(batch).logprobs.detach()
    assert {n.split(".")[0] for n, p in policy.named_parameters() if p.requires_grad} == {"lm"}
    policy(batch).logprobs.sum().backward()
    torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], lr=0.1).step()
    assert (policy(batch).logprobs - before).abs().max() > 0.1
    with torch.no_grad():
        assert torch.equal(policy(batch, reference=True).logprobs, before)


def test_without_a_reference_there_is_no_copy() -> None:
    assert Policy(llama(), with_reference=False).reference is None


def test_the_adapters_dropout_alone_is_on_where_it_is_asked_for() -> None:
    lm = with_adapter(llama(attention_dropout=0.5), 0.2, lora_dropout=0.5)
    batch = pack(GROUPS, 0.7)
    policy = Policy(lm, with_reference=True, adapter_dropout=True)
    with torch.no_grad():
        expected, reference = policy.eval()(batch).logprobs, policy(batch, reference=True).logprobs
        policy.train()
        assert not torch.allclose(policy(batch).logprobs, expected)
        torch.testing.assert_close(policy(batch, reference=True).logprobs, reference)  # of the adapter, not the model's
        torch.testing.assert_close(policy.eval()(batch).logprobs, expected)


def test_dropout_is_off_even_in_training_mode() -> None:
    lm = with_adapter(llama(attention_dropout=0.5), 0.2, lora_dropout=0.5)
    batch = pack(GROUPS, 0.7)
    with torch.no_grad():
        expected = Policy(lm, with_reference=False).eval()(batch).logprobs
        torch.testing.assert_close(Policy(lm, with_reference=False).train()(batch).logprobs, expected)
