"""Conversations from disk as groups: both public layouts, what is refused, and training on what was read."""

import copy
import json
import math
from collections import Counter
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from composing import load_config
from scripted import ScriptedModel, says
from transformers import AutoTokenizer, LlamaForCausalLM

from collab.app.build import stored_contexts
from collab.app.cli import main
from collab.callbacks.progress import Progress, RolloutProgress
from collab.callbacks.rollout import RolloutCallback
from collab.callbacks.transcripts import TranscriptCallback, TranscriptWriter
from collab.config.algorithms import DPOConfig, SFTConfig
from collab.conversation import Goal, Message
from collab.datamodules.base import GoalDataModule
from collab.datamodules.conversations import best_paths, load_groups, training_groups
from collab.datamodules.goals import GoalSplits, load_goals
from collab.datamodules.offline import by_conversation, tokenise
from collab.lm.chat_format import ChatFormat
from collab.modules.dpo import DPO
from collab.modules.sft import SFT
from collab.util.errors import BadInput

# The columns of the card of collabllm/collabllm-multiturn-math-hard, in its words:
# https://huggingface.co/datasets/collabllm/collabllm-multiturn-math-hard/blob/main/README.md
MESSAGES = [{"content": "string", "role": "string"}]
MATH_HARD = {
    "prompt": MESSAGES,
    "completion": "string",
    "conv_id": "int64",
    "score": "float64",
    "single_turn_prompt": "string",
    "single_turn_completion": "string",
    "single_turn_metadata": {"level": "string", "type": "string"},
    "turn_id": "int64",
    "sessions": [MESSAGES],
    "rewards": {"MR": ["float64"], "accuracy": ["int64"], "interactivity": ["float64"], "token_amount": ["float64"]},
}
# An older form, that of the card of collabllm/collabllm-multiturn-bigcodebench-large:
# https://huggingface.co/datasets/collabllm/collabllm-multiturn-bigcodebench-large/blob/212e6760091ae68f483cefed51049ada5babee57/README.md
SESSION = {
    "average_score": "float64",
    "forward_chat": MESSAGES,
    "interactivity": {"score": "float64", "thought": "string"},
}
BIGCODEBENCH_LARGE = {
    **{name: MATH_HARD[name] for name in ("conv_id", "prompt", "completion", "score", "turn_id")},
    **{name: MATH_HARD[name] for name in ("single_turn_prompt", "single_turn_completion")},
    "single_turn_metadata": dict.fromkeys(("entry_point", "extraction_requirement", "task_id", "test"), "string"),
    "sessions": {"0": SESSION, "1": SESSION, "2": SESSION},
}

SOLVE = "Solve x + 2 = 5 for me."
HELP = {"role": "user", "content": "Can you help me with an equation?"}
ASK = {"role": "assistant", "content": "Sure. Which one?"}
TELL = {"role": "user", "content": "x + 2 = 5"}
GOAL = {
    "single_turn_prompt": SOLVE,
    "single_turn_completion": "3",
    "single_turn_metadata": {"level": "Level 5", "type": "Algebra"},
}


def response(completion, score, **rewards):
    given = {
        "MR": [score - 0.1, score + 0.1],
        "accuracy": [0, 1],
        "interactivity": [0.5, 0.75],
        "token_amount": [9.0, 8.0],
    }
    return {"completion": completion, "score": score, "sessions": [[HELP, ASK]], "rewards": {**given, **rewards}}


def conversation(**changes):
    """A row in the layout that `collabllm/datasets/multiturn.py` of the official code describes as nested."""
    turns = [
        {"prompt": [HELP], "responses": [response("Sure. Which one?", 0.75), response("x is 2.", 0.25)]},
        {
            "prompt": [HELP, ASK, TELL],
            "responses": [response("x is 3.", 1.0), response("Hm.", 0.5), response("x is 7.", 0.0)],
        },
    ]
    return {**copy.deepcopy({**GOAL, "turns": turns}), **changes}


def flat(*conversations):
    """The same as rows of single responses, as the public data sets hold them."""
    return [
        {
            "conv_id": conv_id,
            "turn_id": len(turn["prompt"]),
            "prompt": turn["prompt"],
            **{name: row[name] for name in GOAL},
            **answer,
        }
        for conv_id, row in enumerate(conversations)
        for turn in row["turns"]
        for answer in turn["responses"]
    ]


def dataset(rows, columns):
    import datasets

    def feature(kind):
        if isinstance(kind, str):
            return datasets.Value(kind)
        if isinstance(kind, list):
            return datasets.List(feature(kind[0]))
        return {name: feature(inner) for name, inner in kind.items()}

    features = datasets.Features({name: feature(kind) for name, kind in columns.items()})
    return datasets.Dataset.from_list(rows, features=features)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def told(groups):
    """All of what was read that training or a message may use, but for the goals' names."""
    return [
        (
            [(m.role, m.content) for m in group.context.messages()],
            (group.context.goal.prompt, group.context.goal.reference, dict(group.context.goal.metadata)),
            [(c.reply.text, c.reply.finish_reason, c.mr, c.scores) for c in group.candidates],
        )
        for group in groups
    ]


# --- reading ---------------------------------------------------------------------------------------------------------


def test_nested_rows_become_a_group_for_each_turn(tmp_path):
    first, second = load_groups(write(tmp_path / "c.jsonl", [conversation()]), "Be brief.")
    assert [(m.role, m.content) for m in second.context.messages()] == [
        ("system", "Be brief."),
        *((m["role"], m["content"]) for m in (HELP, ASK, TELL)),
    ]
    assert (first.context.turn, second.context.turn) == (1, 2)
    assert second.context.goal.prompt == SOLVE and second.context.goal.reference == "3"
    assert [c.reply.text for c in second.candidates] == ["x is 3.", "Hm.", "x is 7."]
    assert [c.mr for c in second.candidates] == [1.0, 0.5, 0.0]
    best = second.candidates[0]
    assert [score.reward for score in best.scores] == pytest.approx([0.9, 1.1])
    assert best.part("accuracy") == 0.5 and best.part("interactivity") == 0.625 and best.part("MR") is None


def test_a_system_message_of_the_data_stays(tmp_path):
    row = conversation()
    for turn in row["turns"]:
        turn["prompt"].insert(0, {"role": "system", "content": "Ask first."})
    groups = load_groups(write(tmp_path / "c.jsonl", [row]), "Be brief.")
    assert [group.context.system_prompt for group in groups] == ["Ask first."] * 2
    assert [group.context.turn for group in groups] == [1, 2]


def test_the_flat_layout_is_the_nested_one_spread_out(tmp_path):
    other = conversation(single_turn_prompt="Solve x + 2 = 9 for me.")  # it too opens with HELP
    nested = load_groups(write(tmp_path / "nested.jsonl", [conversation(), other]), "")
    rows = flat(conversation(), other)
    assert told(load_groups(write(tmp_path / "flat.jsonl", rows), "")) == told(nested)
    assert len(nested) == 4
    # Rows of a context need not stand together: those of different conversations are told apart by conv_id.
    mixed = load_groups(write(tmp_path / "mixed.jsonl", rows[0::2] + rows[1::2]), "")
    assert sorted(len(group.candidates) for group in mixed) == [2, 2, 3, 3]


@pytest.mark.parametrize("columns", [MATH_HARD, BIGCODEBENCH_LARGE], ids=["math-hard", "bigcodebench-large"])
def test_the_published_columns_are_read_from_parquet_a_folder_and_the_hub(columns, tmp_path, monkeypatch):
    import datasets

    rows = flat(conversation(), conversation())
    for row in rows:
        row["single_turn_metadata"] = dict.fromkeys(columns["single_turn_metadata"], "text")
        if isinstance(columns["sessions"], dict):
            session = {
                "average_score": 0.5,
                "forward_chat": [HELP],
                "interactivity": {"score": 1.0, "thought": "Good."},
            }
            row["sessions"] = dict.fromkeys(columns["sessions"], session)
            del row["rewards"]
    expected = told(load_groups(write(tmp_path / "rows.jsonl", rows), ""))
    assert len(expected) == 4 and [len(candidates) for *_, candidates in expected] == [2, 3, 2, 3]
    found = dataset(rows, columns)
    assert set(found.column_names) == set(columns)
    found.to_parquet(tmp_path / "rows.parquet")
    found.save_to_disk(tmp_path / "folder")
    datasets.DatasetDict({"train": found}).save_to_disk(tmp_path / "splits")
    asked = []
    monkeypatch.setattr(
        datasets, "load_dataset", lambda name, *args, load=datasets.load_dataset, **kwargs: (
            load(name, *args, **kwargs) if args or kwargs else asked.append(name) or datasets.DatasetDict(train=found)
        )
    )  # fmt: skip
    for source in ("rows.parquet", "folder", "splits"):
        assert told(load_groups(tmp_path / source, "")) == expected, source
    assert told(load_groups("collabllm/collabllm-multiturn-math-hard", "")) == expected
    assert asked == ["collabllm/collabllm-multiturn-math-hard"]


def test_a_response_without_a_score_is_left_out_and_never_0(tmp_path):
    row = conversation()
    row["turns"][0]["responses"][0]["score"] = None
    row["turns"][1]["responses"] = [response("x is 3.", math.nan)]
    (group,) = load_groups(write(tmp_path / "c.jsonl", [row]), "")
    assert [c.mr for c in group.candidates] == [0.25]


def test_rewards_may_be_padded_with_nulls_or_lack_values(tmp_path):
    row = conversation()
    rewards = {"MR": [0.2, None], "accuracy": None, "interactivity": [0.5], "runnable code->pass_rate": 1}
    row["turns"][0]["responses"][0]["rewards"] = rewards
    candidate = load_groups(write(tmp_path / "c.jsonl", [row]), "")[0].candidates[0]
    assert [score.reward for score in candidate.scores] == [0.2, None]
    assert candidate.part("interactivity") == 0.5 and candidate.part("accuracy") is None
    assert candidate.part("runnable code->pass_rate") == 1.0


# --- bad input -------------------------------------------------------------------------------------------------------


def changed(path, value):
    """A conversation with the entry at `path` replaced; None for the value removes it."""
    row = conversation()
    *way, last = path
    inner = row
    for key in way:
        inner = inner[key]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return row


USER_TWICE = [HELP, TELL, ASK]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (changed(["turns", 1, "prompt"], USER_TWICE), ["line 2, turn 2: message 2 of the prompt is by 'user'"]),
        (changed(["turns", 1, "prompt"], [ASK, HELP]), ["turn 2: message 1", "by 'assistant'", "must be by 'user'"]),
        (changed(["turns", 1, "prompt"], [HELP, ASK]), ["line 2, turn 2: the prompt ends with", "by 'assistant'"]),
        (changed(["turns", 0, "prompt"], []), ["line 2, turn 1: the prompt has no message by 'user'"]),
        (changed(["turns", 0, "prompt"], [{**HELP, "role": "human"}]), ["message 1 of the prompt is by 'human'"]),
        (changed(["turns", 0, "prompt"], ["Hi"]), ["turn 1: message 1 of the prompt is text ('Hi')"]),
        (changed(["turns", 0, "prompt"], "Hi"), ["line 2, turn 1: field prompt is text ('Hi'); it must be a list"]),
        (changed(["turns", 0, "prompt"], None), ["turn 1: field prompt is missing. It has: responses."]),
        (changed(["turns", 0], "Hi"), ["line 2, turn 1 is text"]),
        (changed(["turns", 0, "responses"], None), ["turn 1: field responses is missing"]),
        (changed(["turns", 0, "responses", 0], 3), ["turn 1: a response is a number"]),
        (changed(["turns", 0, "responses", 0, "completion"], None), ["field completion is missing", "score, sessions"]),
        (changed(["turns", 0, "responses", 0, "score"], None), ["line 2, turn 1: field score is missing"]),
        (changed(["turns", 0, "responses", 0, "score"], "high"), ["field score is text ('high'); it must be a number"]),
        (changed(["turns", 0, "responses", 0, "rewards", "accuracy"], ["x"]), ["field rewards.accuracy is text"]),
        (changed(["turns"], {}), ["line 2: field turns is an object", "must be a list"]),
        (changed(["single_turn_metadata"], 5), ["field single_turn_metadata is a number"]),
        (flat(conversation())[2] | {"prompt": USER_TWICE}, ["line 2: message 2 of the prompt"]),
        (flat(conversation())[2] | {"prompt": [HELP, ASK]}, ["line 2: the prompt ends with"]),
        (flat(conversation())[0] | {"conv_id": None}, ["line 2: field conv_id is missing", "turn_id"]),
        ({"question": "?", "answer": "!"}, ["field prompt is missing. It has: question, answer."]),
        ([1], ["line 2 is a list"]),
    ],
)  # fmt: skip
def test_a_bad_row_is_named_with_its_turn(row, said, tmp_path):
    with pytest.raises(BadInput) as caught:
        load_groups(write(tmp_path / "c.jsonl", [conversation(), row]), "")
    for text in said:
        assert text in str(caught.value)


def test_contexts_are_those_of_the_training_goals(tmp_path, tiny_model):
    source = write(tmp_path / "c.jsonl", [conversation()])
    config = load_config("train", ["task=math", f"sampler.contexts={source}", f"model.path={tiny_model}"])
    told = []
    ours, other = Goal("a", conversation()["single_turn_prompt"], "3"), Goal("b", "x", "3")
    assert {turn for _, turn in stored_contexts(config, [ours, other], told.append)} == {1, 2}
    assert told == [f"1 of the 2 training goals have contexts in {source}."]
    with pytest.raises(BadInput, match=r"has contexts of none of the 1 training goals.*task.train_file="):
        stored_contexts(config, [other])


def test_what_cannot_be_read_is_told(tmp_path):
    def refusal(source):
        with pytest.raises(BadInput) as caught:
            load_groups(source, "")
        return str(caught.value)

    assert "There is no file nowhere.jsonl. Check the path (algorithm.data)" in refusal("nowhere.jsonl")
    assert "`save_to_disk`" in refusal(tmp_path)
    unscored = conversation()
    for turn in unscored["turns"]:
        turn["responses"] = [{**answer, "score": None} for answer in turn["responses"]]
    assert "no response with a score" in refusal(write(tmp_path / "c.jsonl", [unscored]))
    write(tmp_path / "conversations.jsonl", [conversation()])
    assert "a synthesis that has not finished" in refusal(tmp_path)
    dataset(flat(conversation()), MATH_HARD).save_to_disk(tmp_path / "dataset")
    assert len(load_groups(tmp_path, "")) == 2


def test_a_run_refuses_bad_data_before_anything_is_made(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py", "algorithm=dpo", "algorithm.data=rows.jsonl"])
    write(tmp_path / "rows.jsonl", [{"question": "?"}])
    with pytest.raises(SystemExit):
        main("train", lambda config: pytest.fail("it ran"))
    assert "error: rows.jsonl, line 1: field prompt is missing" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


# --- token ids -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chat_format(tiny_model):
    return ChatFormat(AutoTokenizer.from_pretrained(tiny_model))


def test_ids_are_those_of_the_chat_template_with_the_end_of_turn(chat_format, tmp_path):
    row = conversation()
    row["turns"][1]["responses"][1]["finish_reason"] = "length"
    groups = tokenise(load_groups(write(tmp_path / "c.jsonl", [row]), "Be brief."), chat_format, None)
    tokenizer = chat_format.tokenizer
    text = tokenizer.apply_chat_template(
        [{"role": "system", "content": "Be brief."}, HELP, ASK, TELL], tokenize=False, add_generation_prompt=True
    )
    for candidate in groups[1].candidates:
        assert tokenizer.decode(candidate.reply.prompt_ids) == text
    ends = ["<|im_end|>", "", "<|im_end|>"]  # the second was cut
    replies = [candidate.reply for candidate in groups[1].candidates]
    assert [tokenizer.decode(r.token_ids) for r in replies] == [
        r.text + end for r, end in zip(replies, ends, strict=True)
    ]


@pytest.mark.parametrize("cut", [False, True])
def test_a_history_read_as_text_has_the_ids_that_the_rollout_went_on_from(chat_format, cut):
    ids = tuple(chat_format.encode_reply(ASK["content"], cut=cut))
    sampled = [Message("user", HELP["content"]), Message("assistant", ASK["content"], ids), Message("user", "x = 1")]
    read = [Message(m.role, m.content) for m in sampled]
    assert chat_format.encode(read)[0] == chat_format.encode(sampled)[0]


def test_a_reply_has_at_least_one_token(chat_format):
    assert (
        chat_format.encode_reply("", cut=True) == chat_format.encode_reply("") == [chat_format.tokenizer.eos_token_id]
    )


def test_what_does_not_fit_the_model_is_left_out_and_counted(chat_format, tmp_path):
    groups = load_groups(write(tmp_path / "c.jsonl", [conversation()]), "")
    lengths = [
        len(c.reply.prompt_ids) + len(c.reply.token_ids)
        for g in tokenise(groups, chat_format, None)
        for c in g.candidates
    ]
    assert max(lengths[:2]) < min(lengths[2:])
    with pytest.warns(UserWarning, match="3 of 5 responses are left out"):
        found = tokenise(groups, chat_format, max(lengths[:2]))
    assert [len(group.candidates) for group in found] == [2]
    with pytest.raises(BadInput, match="no response and its history fit the 5 positions"):
        tokenise(groups, chat_format, 5)


# --- training --------------------------------------------------------------------------------------------------------


def offline(groups, goals_per_step=2, max_steps=3):
    return GoalDataModule(GoalSplits([], [], []), goals_per_step, max_steps, 5, [(group,) for group in groups])


def test_a_step_has_whole_conversations(chat_format, tmp_path):
    rows = [conversation(conv_id=f"c{number}") for number in range(3)]
    groups = tokenise(load_groups(write(tmp_path / "c.jsonl", rows), ""), chat_format, None)
    conversations = by_conversation(groups[::-1])
    assert [[g.context.goal.id for g in one] for one in conversations] == [["c2"] * 2, ["c1"] * 2, ["c0"] * 2]
    data = GoalDataModule(GoalSplits([], [], []), 2, 3, 5, conversations)
    batches = [[(g.context.goal.id, g.context.turn) for g in batch.groups] for batch in data.train_dataloader()]
    assert [len(batch) for batch in batches] == [4] * 3
    assert all(len({goal for goal, _ in batch}) == 2 for batch in batches)
    assert set(Counter(each for batch in batches for each in batch).values()) == {2}


def test_steps_are_passes_over_the_groups_in_an_order_of_the_seed(chat_format, tmp_path):
    rows = [conversation(conv_id=f"c{number}") for number in range(3)]
    groups = tokenise(load_groups(write(tmp_path / "c.jsonl", rows), ""), chat_format, None)
    data = offline(groups, goals_per_step=4, max_steps=6)
    batches = list(data.train_dataloader())
    assert [len(batch.groups) for batch in batches] == [4] * 6
    for batch in batches:
        assert [goal.id for goal in batch.goals] == [group.context.goal.id for group in batch.groups]
    count = Counter((g.context.goal.id, g.context.turn) for batch in batches for g in batch.groups)
    assert set(count.values()) == {4} and len(count) == 6


def test_a_run_learns_from_what_was_read_and_plays_nothing(chat_format, tiny_model, tmp_path):
    groups = tokenise(load_groups(write(tmp_path / "c.jsonl", [conversation()]), ""), chat_format, None)
    data = offline(groups)
    seen = []

    class Record(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen.append(([g.context.turn for g in batch.groups], float(trainer.callback_metrics["train/loss"])))

    config = DPOConfig(lr=3e-3, warmup_steps=0)
    module = DPO(config, lambda: LlamaForCausalLM.from_pretrained(tiny_model), chat_format.tokenizer, 0.7, 3)
    model = ScriptedModel(says("never"))
    simulation = SimpleNamespace(make_engine=lambda *_: model)
    progress = Progress(animate=False)
    trainer = L.Trainer(
        accelerator="cpu", devices=1, max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
        callbacks=[
            RolloutProgress(progress, 0, 0), RolloutCallback(simulation, ""),
            TranscriptCallback(TranscriptWriter(tmp_path)), Record(),
        ],
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        trainer.fit(module, train_dataloaders=None, datamodule=data)
    assert [sorted(turns) for turns, _ in seen] == [[1, 2]] * 3
    losses = [loss for _, loss in seen]
    assert losses[0] == pytest.approx(math.log(2), rel=1e-3)  # the policy is its own reference at first
    assert losses[2] < losses[1] < losses[0]
    assert model.requests == []
    assert not (tmp_path / "transcripts.jsonl").exists() or (tmp_path / "transcripts.jsonl").read_text() == ""


# --- the official choices --------------------------------------------------------------------------------------------


def verl(rows):
    """The same as verl's recipe/collabllm/process_dataset.py writes it for reinforcement learning."""
    wrapped = []
    for row in rows:
        prompt = [{"role": "system", "content": "Ask first."}, *row["prompt"]]
        kept = {name: value for name, value in row.items() if name not in ("prompt", "single_turn_prompt")}
        told = {"name": "collabllm", "single_turn_prompt": row["single_turn_prompt"], "task_desc": "math problems"}
        truth = row["single_turn_completion"]
        wrapped.append(
            {
                "prompt": prompt,
                "ground_truth": truth,
                "raw_prompt": prompt,
                "extra_info": {**kept, "prompt": prompt, "interaction_kwargs": told},
                "reward_model": {"style": "rule", "ground_truth": truth},
                "data_source": "collabllm",
                "agent_name": "collabllm_agent",
                "index": "0",
            }
        )
    return wrapped


def parquet(path, rows):
    import datasets

    datasets.Dataset.from_list(rows).to_parquet(str(path))
    return path


def test_the_parquet_layout_of_verl_is_read(tmp_path):
    rows = flat(conversation(), conversation(single_turn_prompt="Solve x + 1 = 1.", single_turn_completion="0"))
    plain = load_groups(parquet(tmp_path / "flat.parquet", rows), "Ask first.")
    assert load_groups(parquet(tmp_path / "rl_train.parquet", verl(rows)), "") == plain
    assert len(plain) == 4 and plain[0].context.goal.prompt == SOLVE
    goals = load_goals(tmp_path / "rl_train.parquet", "train")
    assert goals == load_goals(tmp_path / "flat.parquet", "train") and len(goals) == 2


def of_sft(talk):
    """The best path of a conversation as that recipe writes it for SFT: a list of messages, and nothing else."""
    last = talk["turns"][-1]
    best = max(last["responses"], key=lambda one: one["score"])
    return [
        {"role": "system", "content": "Ask."},
        *last["prompt"],
        {"role": "assistant", "content": best["completion"]},
    ]


@pytest.mark.parametrize("column", ["prompt", "messages"])
def test_whole_chats_of_verl_are_learned(column, tmp_path):
    rows = [{column: of_sft(conversation())}, {column: of_sft(conversation())[:3]}]
    groups = load_groups(parquet(tmp_path / "sft_train.parquet", rows), "")
    said = [(group.context.messages(), [one.reply.text for one in group.candidates]) for group in groups]
    start = [Message("system", "Ask."), Message("user", HELP["content"])]
    end = [*start, Message("assistant", ASK["content"]), Message("user", TELL["content"])]
    assert said == [(start, [ASK["content"]]), (end, ["x is 3."]), (start, [ASK["content"]])]
    first, second = by_conversation(groups)
    assert len(first) == 2 and len(second) == 1
    config = SFTConfig(data="sft_train.parquet")
    assert training_groups(SFTConfig(data=str(tmp_path / "sft_train.parquet")), "") == groups
    assert SFT(config, None, None, 1.0, 1).check_data(groups).startswith("3 replies of 3 groups")


def test_whole_chats_with_a_goal_are_goals_once_each(tmp_path):
    rows = [{"messages": of_sft(conversation())[:length], **GOAL} for length in (5, 3)]
    (goal,) = load_goals(parquet(tmp_path / "chats.parquet", rows), "train")
    assert (goal.prompt, goal.reference) == (SOLVE, "3")
    assert {group.context.goal.prompt for group in load_groups(tmp_path / "chats.parquet", "")} == {SOLVE}
    with pytest.raises(BadInput, match="field single_turn_prompt is missing"):
        load_goals(parquet(tmp_path / "bare.parquet", [{"messages": of_sft(conversation())}]), "train")


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([HELP], "row 1: there is no message by 'assistant' in messages"),
        ([HELP, TELL], "row 1: message 2 is by 'user' and must be by 'assistant'"),
        ("Hi", "row 1: field messages is text"),
    ],
)
def test_whole_chats_that_cannot_be_read_are_named(messages, said, tmp_path):
    with pytest.raises(BadInput, match=said):
        load_groups(parquet(tmp_path / "chats.parquet", [{"messages": messages}]), "")


@pytest.mark.parametrize("layout", ["nested", "flat"])
def test_goals_are_read_from_conversations_once_each(layout, tmp_path):
    other = conversation(single_turn_prompt="Solve x + 1 = 1.", single_turn_completion="0")
    talks = [conversation(), other, conversation()]
    rows = [{"conv_id": number, **row} for number, row in enumerate(talks)] if layout == "nested" else flat(*talks)
    goals = load_goals(parquet(tmp_path / "rows.parquet", rows), "train")
    assert [(goal.prompt, goal.reference) for goal in goals] == [(SOLVE, "3"), ("Solve x + 1 = 1.", "0")]
    assert goals[0].metadata == GOAL["single_turn_metadata"] and goals[0].id != goals[1].id
    contexts = load_groups(tmp_path / "rows.parquet", "")
    assert {group.context.goal.prompt for group in contexts} == {goal.prompt for goal in goals}


def test_the_best_path_is_that_of_the_best_last_reply(tmp_path):
    """As `to_sft_dataset` of the official code: the longest history of a conversation, and its best reply."""
    talk = conversation()
    talk["turns"][0]["responses"][1]["score"] = 2.0  # the best of its turn, and on no path that goes on
    path = parquet(tmp_path / "rows.parquet", flat(talk, conversation()))
    groups = training_groups(SFTConfig(data=str(path), best_path=True), "")
    said = [(group.context.turn, [candidate.reply.text for candidate in group.candidates]) for group in groups]
    assert said == [(1, ["Sure. Which one?"]), (2, ["x is 3."])] * 2
    assert groups[0].context.messages() == [Message("user", HELP["content"])]
    assert all(candidate.mr == 1.0 and candidate.part("accuracy") == 0.5 for g in groups for candidate in g.candidates)
    every = load_groups(path, "")
    assert training_groups(SFTConfig(data=str(path)), "") == every and best_paths(every) == groups
    assert max(every[0].candidates, key=lambda one: one.mr).reply.text == "x is 2.", "each turn's best is another"
