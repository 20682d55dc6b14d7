"""Chat logs as groups of users' messages: public schemas, intents, ends, what is left out, what is scrubbed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from collab.conversation import Goal, Group
from collab.datamodules.chat_logs import NOBODY_KNOWS, held_out, scrubber, user_groups
from collab.datamodules.synthesis_folder import DATASET
from collab.parsing.intents import END, intent_of
from collab.util.errors import BadInput

SAID = [("user", "a poem pls"), ("assistant", "About what?"), ("user", "the sea"), ("assistant", "Waves.")]
PLAIN = [{"role": role, "content": text} for role, text in SAID]
WANTS = "You are a user who wants a poem."
WILDCHAT = {  # columns of allenai/WildChat-1M
    "conversation_hash": "3f1c",
    "model": "gpt-4-0314",
    "conversation": [{**m, "language": "English", "redacted": False, "toxic": False} for m in PLAIN],
    "turn": 2,
    "language": "English",
    "toxic": False,
    "redacted": False,
}
LMSYS = {  # columns of lmsys/lmsys-chat-1m
    "conversation_id": "a1",
    "model": "vicuna-13b",
    "conversation": PLAIN,
    "turn": 2,
    "language": "English",
    "openai_moderation": [],
    "redacted": False,
}
SHAREGPT = {
    "id": "x_0",
    "conversations": [{"from": "human" if r == "user" else "gpt", "value": text} for r, text in SAID],
}
NESTED = {  # what collab synthesize writes
    "conv_id": "c",
    "single_turn_prompt": "A poem about the sea.",
    "single_turn_completion": "Waves.",
    "turns": [
        {"prompt": PLAIN[:1], "responses": [{"completion": "About what?", "score": 1.0}]},
        {
            "prompt": PLAIN[:3],
            "responses": [{"completion": "No.", "score": 0.1}, {"completion": "Waves.", "score": 0.9}],
        },
    ],
}


def write(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "logs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def learned(groups: list[Group]) -> list[str]:
    return [candidate.reply.text for group in groups for candidate in group.candidates]


@pytest.mark.parametrize("row", [WILDCHAT, LMSYS, SHAREGPT, {"messages": PLAIN}])
def test_schemas_of_public_logs(tmp_path: Path, row: dict[str, Any]) -> None:
    groups, notes = user_groups(write(tmp_path, {**row, "intent": WANTS}), {})
    assert learned(groups) == ["a poem pls", "the sea", END] and not notes
    contexts = [[(m.role, m.content) for m in group.context.messages()] for group in groups]
    assert contexts == [[("system", WANTS), *SAID[:length]] for length in (0, 2, 4)]


def test_the_data_of_a_synthesis_give_the_path_of_the_best_reply(tmp_path: Path) -> None:
    groups, _ = user_groups(write(tmp_path, {**NESTED, "ended_by": "satisfied"}), {})
    assert learned(groups) == ["a poem pls", "the sea", END]
    assert groups[-1].context.assistant_texts == ["About what?", "Waves."]
    assert "A poem about the sea." in groups[0].context.system_prompt


@pytest.mark.parametrize(
    ("ended_by", "left"),
    [("satisfied", True), ("patience", True), ("max_turns", False), ("context_full", False), (None, False)],
)
@pytest.mark.parametrize("saved", [False, True])
def test_of_a_synthesis_the_end_is_learned_only_where_the_user_left(
    tmp_path: Path, ended_by: str | None, left: bool, saved: bool
) -> None:
    rows = [NESTED, {**NESTED, "conv_id": "d", "ended_by": ended_by}]
    source = write(tmp_path, *rows)
    if saved:
        datasets.Dataset.from_list([{"ended_by": None, **row} for row in rows]).save_to_disk(tmp_path / DATASET)
        source = tmp_path
    groups, _ = user_groups(source, {})
    assert learned(groups) == ["a poem pls", "the sea"] * 2 + [END] * left
    groups, _ = user_groups(write(tmp_path, {**rows[1], "conv_id": None}), {})
    assert learned(groups) == ["a poem pls", "the sea"] + [END] * left


def test_without_an_intent_the_first_message_is_not_learned(tmp_path: Path) -> None:
    groups, (note,) = user_groups(write(tmp_path, WILDCHAT, {**WILDCHAT, "intent": WANTS}), {})
    assert learned(groups) == ["the sea", END, "a poem pls", "the sea", END]
    assert groups[0].context.system_prompt == NOBODY_KNOWS
    assert "1 of 2 conversations have no intent" in note


def test_instructions_of_the_assistant_are_no_part_of_a_log_wherever_they_stand(tmp_path: Path) -> None:
    note = {"role": "system", "content": "Be short."}
    groups, _ = user_groups(write(tmp_path, {"messages": [note, *PLAIN[:2], note, *PLAIN[2:]], "intent": WANTS}), {})
    plain, _ = user_groups(write(tmp_path, {"messages": PLAIN, "intent": WANTS}), {})
    assert learned(groups) == learned(plain) != []


def test_a_line_of_transcripts_names_its_goal_and_how_it_ended(tmp_path: Path) -> None:
    goal = Goal("sea", "A poem about the sea.", "Waves.")
    instructed = [{"role": "system", "content": "Help."}, *PLAIN]
    rows = [{"goal": "sea", "messages": instructed, "ended_by": why} for why in ("satisfied", "max_turns")]
    rows.append({"goal": "sea", "messages": PLAIN, "ended_by": "invalid: leak"})
    groups, (note,) = user_groups(write(tmp_path, *rows), {"sea": goal})
    assert learned(groups) == ["a poem pls", "the sea", END, "a poem pls", "the sea"]
    assert {group.context.system_prompt for group in groups} == {intent_of(goal)}
    assert "1 of 3 conversations are left out: their simulation failed." in note


def test_the_test_conversations_of_a_run_are_learned_from(tmp_path: Path) -> None:
    goal = Goal("sea", "A poem about the sea.", "Waves.")
    rows = [
        {"phase": phase, "goal": "sea", "messages": PLAIN[:length]} for phase, length in (("train", 4), ("test", 3))
    ]
    write(tmp_path, *rows).rename(tmp_path / "transcripts.jsonl")
    groups, _ = user_groups(tmp_path, {"sea": goal})
    assert learned(groups) == ["a poem pls", "the sea"]


def test_what_is_no_chat_in_english_is_left_out_and_counted(tmp_path: Path) -> None:
    others = [
        {**WILDCHAT, "language": "Russian"},
        {"messages": PLAIN[1:]},
        {"messages": [*PLAIN[:3], {"role": "assistant", "content": " "}]},
        {"conversations": [{"from": "human", "value": None}]},
    ]
    groups, notes = user_groups(write(tmp_path, {**LMSYS, "intent": WANTS}, *others), {})
    assert len(groups) == 3
    assert sum("1 of 5" in note and "not in English" in note for note in notes) == 1
    assert sum("3 of 5" in note and "take turns" in note for note in notes) == 1
    with pytest.raises(BadInput, match=r"no user's message to learn from.*not in English"):
        user_groups(write(tmp_path, others[0]), {})


def test_a_last_message_without_an_answer_is_learned_and_no_end(tmp_path: Path) -> None:
    groups, _ = user_groups(write(tmp_path, {"messages": PLAIN[:3], "intent": WANTS}), {})
    assert learned(groups) == ["a poem pls", "the sea"]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"question": "?"}, "A chat is in one of the columns conversation, conversations, messages"),
        ({"messages": "hi"}, "field messages is text"),
        ({"messages": PLAIN, "intent": 3}, "field intent is a number"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: dict[str, Any], told: str) -> None:
    with pytest.raises(BadInput, match=f"line 1.*{told}"):
        user_groups(write(tmp_path, row), {})


def test_held_out_intents_are_not_learned(tmp_path: Path) -> None:
    rows = [{"messages": PLAIN, "intent": f"You are a user who wants {n % 25} poems."} for n in range(50)]
    rows += [WILDCHAT] * 10
    groups, _ = user_groups(write(tmp_path, *rows), {})
    train, measured = held_out(groups)
    assert len(train) + len(measured) == len(groups)
    known = [{group.context.system_prompt for group in part} - {NOBODY_KNOWS} for part in (train, measured)]
    assert not known[0] & known[1] and len(known[1]) == 3
    chats = [{group.context.goal.id for group in part} for part in (train, measured)]
    assert not chats[0] & chats[1]
    one, _ = user_groups(write(tmp_path, *rows[:1]), {})
    with pytest.raises(BadInput, match="one intent alone"):
        held_out(one)


def test_personal_data_are_taken_out_of_all_texts(tmp_path: Path) -> None:
    pytest.importorskip("datafog")
    private = "ann.lee@example.com or (415) 555-0132, card 4111 1111 1111 1111"
    messages = [{**m, "content": f"{m['content']} {private}"} for m in PLAIN]
    groups, _ = user_groups(write(tmp_path, {"messages": messages, "intent": f"{WANTS} {private}"}), {}, scrubber())
    texts = [m.content for group in groups for m in group.context.messages()] + learned(groups)
    assert not [text for text in texts if "ann.lee" in text or "555" in text or "4111" in text]
    assert texts[0].startswith(WANTS) and "a poem pls [EMAIL_1] or [PHONE_1]" in learned(groups)[0]
    assert scrubber()("The kiln fires at 10.30 on 12 May 2024 and costs $1,200.") == (
        "The kiln fires at 10.30 on 12 May 2024 and costs $1,200."
    )


def test_a_missing_library_is_named_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datafog", None)
    with pytest.raises(BadInput, match=r"pip install 'collab-llm\[scrub\]'.*algorithm.scrub=false"):
        scrubber()
