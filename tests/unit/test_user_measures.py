"""What a conversation says about its user: measures by hand arithmetic, and users beside each other."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from collab.conversation import Conversation, Goal, Reply
from collab.datamodules.chats import load_chats
from collab.parsing.stance import agrees, complains
from collab.randomness import RngKey
from collab.reports.plots import users_figure
from collab.reports.tables import markdown
from collab.reports.users import summarise_users, user_rows
from collab.simulation.user_measures import MEASURES, disclosure_by_turn, measure, messages_of
from collab.util.errors import BadInput

GOAL = Goal(
    "kiln",
    "A notice about the shared kiln, friendly. What I know: it fires on Mondays at nine; shelves cost four euros.",
    "The shared kiln fires every Monday at nine, so bring your dry pieces in time. A shelf costs four euros.",
    {
        "title": "the shared kiln",
        "form": "notice",
        "preferences": {"tone": "friendly"},
        "notes": ["it fires on Mondays at nine", "shelves cost four euros", "ring Anna first"],
    },
)


def talk(*said: str, goal: Goal = GOAL, ended_by: str = "max_turns") -> Conversation:
    """User and assistant in turns; the user's last message may have no answer."""
    conversation = Conversation(goal)
    for number, text in enumerate(said):
        conversation = conversation.with_reply(Reply(text)) if number % 2 else conversation.with_user(text)
    return replace(conversation, ended_by=ended_by)


def of(*said: str, ended_by: str = "max_turns") -> dict[str, float | None]:
    (values,) = measure([talk(*said, ended_by=ended_by)])
    return values


def test_measures_by_hand() -> None:
    values = of(
        "I need a notice about the shared kiln.",  # 8 words
        "When is it?",
        "Sure. It fires on Mondays at nine. Why?",  # 8 words: one item of four; a question; agrees
        "And the cost?",
        "No, you already asked. It fires on Mondays at nine.",  # 10 words; complains; 5 of 9 pairs were said before
    )
    assert values["words"] == pytest.approx(26 / 3)
    assert values["questions"] == pytest.approx(1 / 3)
    assert values["disclosure"] == pytest.approx(1 / 4 / 3) and values["opening_disclosure"] == 0
    assert values["agreement"] == pytest.approx(1 / 2) and values["annoyance"] == pytest.approx(1 / 2)
    assert values["repetition"] == pytest.approx((0 / 7 + 5 / 9) / 2)
    assert (values["turns"], values["leak"], values["role_confusion"], values["invalid"]) == (3, 0, 0, 0)
    assert (values["satisfied"], values["patience"]) == (0, 0)
    assert values.keys() == set(MEASURES)


def test_vocabulary_is_the_expected_share_of_distinct_words() -> None:
    assert of(" ".join(["same"] * 30))["vocabulary"] == pytest.approx(1 / 25)
    assert of(" ".join(f"word{n}" for n in range(30)))["vocabulary"] == pytest.approx(1)
    # 50 words, two kinds: each is missed by 25 draws with probability 1 / C(50, 25), which is next to nothing.
    assert of(" ".join(["one", "two"] * 25))["vocabulary"] == pytest.approx(2 / 25)
    assert of("too few words")["vocabulary"] is None


def test_a_copy_of_the_reference_is_a_leak_and_a_remark_is_none() -> None:
    assert of("Write: the shared kiln fires every Monday at nine, so bring your dry pieces.")["leak"] == 1
    assert of("Hi.", "Yes?", "Fires every Monday at nine, so bring your dry pieces.")["leak"] == 1
    assert of("Hi.", "Yes?", "It fires on Mondays.")["leak"] == 0


def test_phrases_of_other_conversations_are_stock_phrases() -> None:
    other = replace(GOAL, id="boat", prompt="A sign about the boat.")
    both = measure([talk("Can you help me today"), talk("Can you help them", goal=other)])
    assert both[0]["stock_phrases"] == pytest.approx(2 / 4)  # "can you" and "you help" of four pairs
    assert both[1]["stock_phrases"] == pytest.approx(2 / 3)
    assert measure([talk("Can you"), talk("Can you")])[0]["stock_phrases"] is None  # the same goal
    people = measure([talk("Can you help me today", goal=Goal(name, "", "")) for name in ("chat-1", "chat-2")])
    assert [values["stock_phrases"] for values in people] == [1, 1]


def test_what_cannot_be_told_is_missing_and_never_zero() -> None:
    failed, spoken = measure([talk("Hi.", ended_by="invalid: shape"), talk("Hi.", goal=Goal("x", "", ""), ended_by="")])
    assert failed["invalid"] == 1 and all(value is None for name, value in failed.items() if name != "invalid")
    missing = {name for name, value in spoken.items() if value is None}
    assert {"disclosure", "leak", "satisfied", "patience", "repetition", "agreement"} <= missing


def test_the_curve_of_disclosure_never_falls() -> None:
    short = talk("It fires on Mondays at nine. Shelves cost four euros.")
    long = talk("Hi.", "When?", "It fires on Mondays at nine.", "And?", "Keep it friendly.")
    assert disclosure_by_turn([short, long], 3) == pytest.approx([2 / 8, 3 / 8, 4 / 8])
    assert disclosure_by_turn([talk("Hi.", goal=Goal("x", "", ""))], 2) == [None, None]


@pytest.mark.parametrize("text", ["Sure.", "Good question. At nine.", "Oh, right, I see.", "That works.", "Thanks!"])
def test_it_agrees(text: str) -> None:
    assert agrees(text) and not complains(text)


@pytest.mark.parametrize(
    "text",
    [
        "No, that is wrong.",
        "That is not what I had in mind.",
        "You have that already.",
        "I told you what I can about that.",
        "That does not help me much.",
        "One thing at a time, please.",
        "Hmm, no. You are missing things.",
    ],
)
def test_it_complains(text: str) -> None:
    assert complains(text)


@pytest.mark.parametrize("text", ["I don't mind, you choose.", "At nine, by the gate.", "No idea.", "It is for Anna."])
def test_it_does_neither(text: str) -> None:
    assert not complains(text) and not agrees(text)


# --- users beside each other -----------------------------------------------------------------------------------------


def rows(**values: list[float | None]) -> dict[str, list[tuple[str, dict[str, float | None]]]]:
    return {
        name: [(f"goal-{n}", {"words": v, "invalid": 0.0}) for n, v in enumerate(vs)] for name, vs in values.items()
    }


def test_the_distance_is_an_effect_size_beside_that_of_chance() -> None:
    found = summarise_users(rows(people=[1, 3, 1, 3], alike=[1, 3, 1, 3], far=[101, 103, 101, 103]), "people", 1)
    assert found["distance"]["alike"]["mean"] == 0 and found["distance"]["far"]["mean"] == 3  # cut at 3
    assert "people" not in found["difference"] and "people" not in found["distance"]
    shifted = summarise_users(rows(people=[1, 3, 1, 3], near=[2, 4, 2, 4]), "people", 1)["distance"]["near"]
    assert shifted["mean"] == pytest.approx(3**0.5 / 2)  # a gap of 1, and a variance of 4 / 3
    # By hand: pools of 1, 1, 2, 2 have the splits 11|22, 12|12 (four of six) and 22|11: 3, 0 and 3 in the mean 1.
    pools = summarise_users(rows(people=[1, 1], mine=[2, 2]), "people", 1)["distance"]["mine"]
    assert pools["mean"] == pools["chance_95th"] == 3 and pools["chance"] == pytest.approx(1, abs=0.3)


def test_the_distance_of_users_who_are_alike_is_that_of_chance() -> None:
    draws = RngKey(1).stream()
    same, far = (
        [{"a": 0.0, **dict(zip("bcdef", row, strict=True))} for row in draws.normal(m, 1, (30, 5))] for m in (0, 1)
    )
    people = [
        (f"p{n}", {"a": 0.0, **dict(zip("bcdef", row, strict=True))})
        for n, row in enumerate(draws.normal(0, 1, (30, 5)))
    ]
    named = {name: [(f"u{n}", row) for n, row in enumerate(each)] for name, each in (("same", same), ("far", far))}
    found = summarise_users({"people": people, **named}, "people", 1)["distance"]
    assert 0 < found["same"]["mean"] < found["same"]["chance_95th"]
    assert found["far"]["mean"] > 2 * found["far"]["chance_95th"]


def test_goals_are_drawn_once_for_both_sides() -> None:
    """Users that differ by 1 on every goal differ by 1 in each draw; on goals of their own, they don't."""
    paired = summarise_users(rows(one=[1, 5, 9], two=[2, 6, 10]), None, 1)["difference"]["two"]["words"]
    assert paired == {"mean": 1, "ci95": [pytest.approx(1), pytest.approx(1)], "n": 3}
    apart = rows(one=[1, 5, 9]) | {
        "two": [(f"own-{n}", {"words": v, "invalid": 0.0}) for n, v in enumerate((2, 6, 10))]
    }
    low, high = summarise_users(apart, None, 1)["difference"]["two"]["words"]["ci95"]
    assert low < -2 and high > 4


def test_without_people_users_are_compared_with_all_others() -> None:
    found = summarise_users(rows(one=[0, 0], two=[1, 1], three=[2, 2]), None, 1)
    assert [found["difference"][name]["words"]["mean"] for name in ("one", "two", "three")] == [-1.5, 0, 1.5]
    alone = summarise_users(rows(one=[0, 1]), None, 1)
    assert alone["difference"] == alone["distance"] == {}


def test_a_missing_value_is_in_no_mean() -> None:
    found = summarise_users(rows(one=[None, 4], two=[None, None]), None, 1)
    assert found["users"]["one"]["words"] == {"mean": 4, "ci95": [4, 4], "n": 1}
    assert found["difference"]["one"]["words"] == {"mean": None, "ci95": [None, None], "n": 0}
    assert found["distance"]["one"]["n"] == 0


def test_table_and_picture_have_every_user(tmp_path: Path) -> None:
    report = summarise_users(rows(people=[1, 3], mine=[2, 4]), "people", 1)
    report["disclosure_by_turn"] = {"people": [0.1, None], "mine": [None, None]}
    report["totals"] = {name: {"messages": 4, "seconds_per_message": None} for name in ("people", "mine")}
    text = markdown(*user_rows(report))
    assert "| measure | people | mine | mine − people |" in text
    assert "| words | 2.000 [1.000, 3.000] | 3.000 [2.000, 4.000] | +1.000" in text
    assert "| distance |  |  | 0.707 chance " in text
    assert "| messages | 4 | 4 |  |" in text and "| seconds per message | – | – |  |" in text
    assert users_figure(report, tmp_path / "users.png").read_bytes()[:4] == b"\x89PNG"


# --- stored conversations --------------------------------------------------------------------------------------------

CHAT = [
    {"role": "user", "content": "Hi."},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": "Bye."},
]


def test_the_test_conversations_of_a_run_are_read_with_their_goals(tmp_path: Path) -> None:
    lines = [
        {"phase": "train", "goal": "kiln", "messages": CHAT, "ended_by": "window"},
        {"phase": "test", "goal": "kiln", "messages": CHAT[:2], "ended_by": "patience", "user": "terse"},
    ]
    file = tmp_path / "transcripts.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)) + '\n{"phase": "te', encoding="utf-8")  # killed in a line
    (chat,) = load_chats(tmp_path, "report.chats", [GOAL])
    assert (chat.goal, chat.ended_by, chat.user, messages_of(chat)) == (GOAL, "patience", "terse", ["Hi."])


def test_chats_of_people_keep_the_last_message(tmp_path: Path) -> None:
    file = tmp_path / "chats.jsonl"
    file.write_text(json.dumps({"messages": CHAT}), encoding="utf-8")
    (chat,) = load_chats(file, "report.chats")
    assert messages_of(chat) == ["Hi.", "Bye."] and chat.goal.prompt == "" and chat.ended_by == ""


def test_public_logs_are_read(tmp_path: Path) -> None:
    file = tmp_path / "chats.jsonl"
    said = [{"from": "human" if m["role"] == "user" else "gpt", "value": m["content"]} for m in CHAT]
    for row in ({"conversation": CHAT, "turn": 2}, {"conversations": said}):
        file.write_text(json.dumps(row), encoding="utf-8")
        (chat,) = load_chats(file, "report.chats")
        assert messages_of(chat) == ["Hi.", "Bye."] and chat.assistant_texts == ["Yes?"]


def test_the_longest_path_of_each_stored_conversation_is_read(tmp_path: Path) -> None:
    row = {"conv_id": "c", "single_turn_prompt": "A notice.", "single_turn_completion": "Come."}
    responses = [{"completion": "Who?", "score": 0.1}, {"completion": "When?", "score": 0.7}]
    first = {"prompt": CHAT[:1], "responses": responses}
    second = {"prompt": CHAT, "responses": [{"completion": "Come.", "score": 0.2}]}
    file = tmp_path / "data.jsonl"
    file.write_text(json.dumps({**row, "turns": [first, second]}), encoding="utf-8")
    (chat,) = load_chats(file, "report.chats")
    assert chat.assistant_texts == ["Yes?", "Come."] and chat.goal.prompt == "A notice."


@pytest.mark.parametrize(
    "content, told",
    [
        ('{"messages": []}', "holds no conversation"),
        ('{"messages": [{"role": "assistant", "content": "Hi."}]}', "must be by 'user'"),
        ('{"messages": [{"role": "user", "content": "Hi."}]}\n{"text": "Hi."}', "messages"),
        ("no json", "is not JSON"),
    ],
)
def test_a_file_without_chats_is_refused(content: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / "chats.jsonl"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(BadInput, match=told):
        load_chats(file, "report.chats")
