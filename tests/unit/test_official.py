"""The metrics of `definitions=official`: what they compute, what they ask, and what they say when they cannot."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import tiktoken
from composing import load_config
from hypothesis import given
from hypothesis import strategies as st
from marks import slow
from scripted import Script, answering, spoken

from collab.app import build
from collab.app.cli import main
from collab.app.preflight import check_machine
from collab.chat.base import Sampling
from collab.chat.endpoints import Endpoints
from collab.config.checks import check
from collab.conversation import Agenda, AgendaItem, Conversation, Goal, Message
from collab.datamodules.goals import load_splits
from collab.randomness import RngKey
from collab.rewards.judge import Judge
from collab.rewards.metrics import Bleu, CharacterBleu, Judged
from collab.rewards.official import ChatAccuracy, ChatBleu, ChatPassRate, Tokens
from collab.util.errors import BadInput
from collab.util.prompts import prompt_text
from collab.util.targets import load_target

TEXT = "The kiln fires on Friday."
TALK = (
    Conversation(Goal("g", "Write a notice.", "abcde"), system_prompt="Help.")
    .with_user("hi there")
    .with_reply(spoken("Which day?"))
    .with_user("friday")
    .with_reply(spoken("Done."))
)
PROGRAM = "def twice(x):\n    return 2 * x\n"
CODE = Goal(
    "c",
    "I need a function.",
    PROGRAM,
    {
        "entry_point": "twice",
        "tests": "def check(f):\n    assert f(2) == 4\ncheck(twice)",
        "agenda": Agenda(
            "program",
            "I need a function.",
            (
                AgendaItem("behaviour", "It doubles."),
                AgendaItem("signature", "It has to start like this:\ndef twice(x):"),
            ),
        ).entry(),
    },
)


def extractor(script: Script, template: str = "") -> Judge:
    return Judge(answering(script), Sampling(200, 0.0), 1, 3, Counter(), "extractor", {"extract": template})


def assembled(text: str, artefact: str = "document") -> Script:
    def script(messages: Sequence[Message], key: RngKey) -> str:
        found = re.search(r"mark ([0-9a-f]{8})", messages[0].content)
        assert found is not None
        return f"<{artefact} {found[1]}>\n{text}\n</{artefact} {found[1]}>"

    return script


def run(metric: Any, conversation: Conversation = TALK) -> Any:
    return asyncio.run(metric(conversation))


# --- what is computed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("abcde", 1.0),
        ("abcdx", (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25),  # of 5 characters, 4 pairs, 3 triples, 2 quadruples
        ("abcd", 2.718281828459045 ** (1 - 5 / 4)),  # too short
        ("vwxyz", 0.0),
        ("", 0.0),
    ],
)
def test_bleu_is_over_characters(text: str, expected: float) -> None:
    metric = ChatBleu()
    metric.extractor = extractor(assembled(text))
    assert run(metric).value == pytest.approx(expected, abs=1e-9)


@pytest.mark.filterwarnings("ignore::UserWarning")
@given(*[st.text("ab c.\n漢", min_size=1, max_size=40)] * 2)
def test_bleu_over_characters_is_that_of_nltk(text: str, reference: str) -> None:
    talk = Conversation(Goal("g", "Write.", reference)).with_user("hi").with_reply(spoken(text))
    from nltk.translate.bleu_score import sentence_bleu  # takes long to import

    assert CharacterBleu().of(text, talk) == pytest.approx(sentence_bleu([reference], text), abs=1e-9)


def test_the_two_bleus_differ_as_the_page_of_differences_says() -> None:
    goal = Goal("g", "Write.", "The fair is on Saturday at noon. Please bring a cake.")
    talk = Conversation(goal).with_user("hi").with_reply(spoken("We meet at noon on Saturday. Bring cake."))
    assert [round(run(metric, talk), 2) for metric in (CharacterBleu(), Bleu())] == [0.49, 0.11]


def test_without_a_judge_bleu_over_characters_is_that_of_the_last_message() -> None:
    config = load_config("train", ["task=doc_edit"]).task.metrics["official_bleu"]
    metric = load_target(config.target, "target")(**config.options)
    talk = TALK.with_user("now").with_reply(spoken("abcdx")).with_end("window")
    assert run(metric, talk) == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    assert config.weight == 0


@pytest.fixture
def bytewise(monkeypatch: pytest.MonkeyPatch) -> None:
    """tiktoken with a table of single bytes and the special token of cl100k_base."""
    ranks = {bytes([number]): number for number in range(256)}
    encoding = tiktoken.Encoding(
        "bytes", pat_str=r"[\s\S]", mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 256}
    )
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: {"cl100k_base": encoding}[name])


@pytest.mark.parametrize(("side", "texts"), [("assistant", "Which day? Done."), ("user", "hi there friday")])
def test_tokens_are_those_of_the_messages_joined_by_blanks_in_thousands(bytewise: None, side: str, texts: str) -> None:
    assert run(Tokens(side)) == len(texts) / 1000


def test_the_name_of_a_special_token_is_text(bytewise: None) -> None:
    assert (
        run(Tokens(), TALK.with_user("?").with_reply(spoken("<|endoftext|>")))
        == len("Which day? Done. <|endoftext|>") / 1000
    )


def test_tokens_are_not_clamped(bytewise: None) -> None:
    assert run(Tokens(), TALK.with_user("?").with_reply(spoken("x" * 5000))) > 5


def test_accuracy_is_judged_over_the_whole_chat() -> None:
    model = answering(lambda messages, key: json.dumps({f"score_{_mark(messages)}": 1}))
    metric = ChatAccuracy()
    metric.judge = Judge(model, Sampling(200, 0.0), 1, 3, Counter())
    assert run(metric).value == 1.0
    shown = model.asked[0][0][1].content
    assert all(text in shown for text in ("Write a notice.", "abcde", "hi there", "Which day?", "friday", "Done."))


def test_a_program_of_the_whole_chat_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[str] = []

    async def run_program(program: str, tests: str, **options: object) -> SimpleNamespace:
        runs.append(program)
        return SimpleNamespace(passed=True)

    monkeypatch.setattr("collab.rewards.metrics.run_program", run_program)
    metric = ChatPassRate()
    metric.extractor = judge = extractor(assembled(PROGRAM, "program"))
    talk = Conversation(CODE).with_user("hi").with_reply(spoken("It only needs a product."))
    assert run(metric, talk).value == 1.0 and runs == [PROGRAM.strip()]
    asked = judge.model.asked[0][0]  # type: ignore[attr-defined]
    assert "def twice(x):" in asked[0].content and "It doubles." not in asked[0].content + asked[1].content


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        (PROGRAM, 1.0),
        (f"```python\n{PROGRAM}```", 1.0),
        (f"{PROGRAM} and more", 0.0),
        (f"Here:\n{PROGRAM}", 0.0),
        ("", 0.0),
    ],
)
def test_a_program_is_run_as_it_was_put_together(text: str, passes: float) -> None:
    metric = ChatPassRate()
    metric.extractor = extractor(assembled(text, "program"))
    talk = Conversation(CODE).with_user("hi").with_reply(spoken("It only needs a product."))
    assert run(metric, talk).value == passes


# --- extraction -------------------------------------------------------------------------------------------------------


def test_a_text_that_was_written_in_parts_is_no_invention() -> None:
    metric = ChatBleu()
    metric.extractor = extractor(assembled("abcde"))  # a copy has to have been written in one reply
    assert run(metric).value == 1.0


TEMPLATE = "Find the {extract_type}. {extraction_requirement}\n{chat_history}\nAs {{...}}."


@pytest.mark.parametrize(
    "reply",
    [
        '{"thought": "-", "final_completion": "abcde"}',
        'Here: {"thought": """a "b" c""", "final_completion": """abcde"""}',
        '{"thought": "long ' + "x" * 5000 + '", "final_completion": "abcde"}',
        '{thought: "-", "final_completion": "abcde",}',
    ],
)
def test_a_prompt_of_ones_own_is_filled_in_and_its_json_is_read(reply: str) -> None:
    metric = ChatBleu()
    metric.extractor = judge = extractor(lambda messages, key: reply, TEMPLATE)
    assert run(metric) == Judged(1.0, (reply,))
    (asked,) = judge.model.asked[0][0]  # type: ignore[attr-defined]
    assert asked.content == (
        "Find the document. \n**User**: hi there\n**Assistant**: Which day?\n**User**: friday\n**Assistant**: Done.\n"
        "As {...}."
    )


@pytest.mark.parametrize("template", ["", TEMPLATE])
def test_the_extractor_is_told_what_a_published_goal_requires(template: str) -> None:
    metric = ChatPassRate()
    metric.extractor = judge = extractor(assembled("", "program") if not template else (lambda *_: "-"), template)
    goal = replace(CODE, metadata={**CODE.metadata, "extraction_requirement": "Begin with an import."})
    run(metric, Conversation(goal).with_user("hi").with_reply(spoken("No.")))
    asked = judge.model.asked[0][0]  # type: ignore[attr-defined]
    assert "Begin with an import." in asked[0].content and "def twice" not in asked[0].content


CUT = '{thought: "-", "final_completion": "abcde' + " and so on" * 400 + '",}'  # repaired, it would be a part


@pytest.mark.parametrize("reply", ["abcde", '{"thought": "-"}', CUT])
def test_an_answer_of_another_shape_is_missing(reply: str) -> None:
    metric = ChatBleu()
    metric.extractor = judge = extractor(lambda messages, key: reply, TEMPLATE)
    assert run(metric).value is None and judge.problems["extractor_shape"] == 2


# --- prompts of one's own ---------------------------------------------------------------------------------------------

ASKED = {
    "accuracy": "Of {single_turn_prompt}, is {ground_truth} in this?\n{chat_history}\nAs {{...}}.",
    "interactivity": "How well do they work together?\n{chat_history}\nAs {{...}}.",
}
CHAT = "**User**: hi there\n**Assistant**: Which day?\n**User**: friday\n**Assistant**: Done.\nAs {...}."


def test_the_judges_prompts_are_read_from_a_package(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, bytewise: None
) -> None:
    """A stand-in for the package, in our words."""
    (tmp_path / "standin" / "prompts").mkdir(parents=True)
    (tmp_path / "standin" / "__init__.py").write_text("raise RuntimeError('nothing of the package is run')")
    given = ["definitions=official", "judge=local", "task=math"]
    for name, text in ASKED.items():
        (tmp_path / "standin" / "prompts" / f"{name}.txt").write_text(text)
        given.append(f"judge.{name}_prompt=package://standin/prompts/{name}.txt")
    monkeypatch.syspath_prepend(tmp_path)
    config = load_config("train", given)
    check(config)
    model = answering('{"thought": "-", "accuracy": 1}', 'So: {"thought": """a "b" c""", "interactivity": 0.25}')
    monkeypatch.setattr(build, "chat_model", lambda *_: model)
    with Endpoints(replace(config, output_dir=str(tmp_path / "run"))) as endpoints:
        metrics = build.simulation(config, endpoints, lambda: None).reward.metrics
    for name, shown in (("accuracy", f"Of Write a notice., is abcde in this?\n{CHAT}"), ("interactivity", CHAT)):
        found = run(metrics[name][1])
        assert found.value == {"accuracy": 1.0, "interactivity": 0.25}[name] and len(found.replies) == 1
        (asked,) = model.asked[-1][0]
        assert asked.content.endswith(shown) and "mark" not in asked.content


@pytest.mark.parametrize(
    "reply", ["1", '{"accuracy": 2}', '{"accuracy": -0.5}', '{"accuracy": "9/10"}', '{"accuracy": true}']
)
def test_a_verdict_that_is_no_number_from_0_to_1_is_missing(reply: str) -> None:
    metric = ChatAccuracy()
    metric.judge = Judge(answering(reply), Sampling(200, 0.0), 1, 3, Counter(), prompts=ASKED)
    assert run(metric).value is None and metric.judge.problems["judge_shape"] == 2


# --- config -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "weights"),
    [
        ("doc_edit", {"bleu": 1, "tokens_read": -0.1, "interactivity": 1, "tokens_typed": 0}),
        ("code", {"pass_rate": 1, "tokens_read": -0.5, "interactivity": 1, "tokens_typed": 0}),
        ("math", {"accuracy": 1, "tokens_read": -0.5, "interactivity": 1, "tokens_typed": 0}),
    ],
)
def test_official_metrics_take_the_place_of_all_of_a_tasks(task: str, weights: dict[str, float]) -> None:
    config = load_config("train", [f"task={task}", "definitions=official", "judge=local"])
    assert {name: metric.weight for name, metric in config.task.metrics.items()} == weights
    assert not any("Judged" in metric.target for metric in config.task.metrics.values())  # the judge replaces none


@pytest.mark.parametrize(
    "typed",
    [
        "task.metrics.bleu.weight=2",
        slow("+task.metrics.bleu.options.smooth=1"),
        "~task.metrics.token_penalty",
        slow("task.metrics={}"),
        slow("++task.metrics.bleu.options.with_notes=false"),
    ],
)
def test_a_metric_of_the_task_that_is_not_read_is_refused(typed: str) -> None:
    official = ["experiment=paper/doc_edit"]
    with pytest.raises(BadInput) as found:
        load_config("train", [*official, typed])
    message = str(found.value)
    assert message.startswith(f"{typed}: definitions=official has metrics of its own in place of task.metrics")
    assert "Set definitions.tasks.doc_edit.metrics.bleu and so on, or take definitions=collab." in message
    load_config("train", [*official, typed, "definitions=collab"])
    given = load_config("train", [*official, "definitions.tasks.doc_edit.metrics.bleu.weight=2"])
    assert given.task.metrics["bleu"].weight == 2


def test_what_the_judge_adds_stays() -> None:
    config = load_config("train", ["definitions=official", "judge=helpfulness"])
    assert {"bleu", "helpfulness"} <= config.task.metrics.keys()


def test_a_task_without_official_metrics_is_named() -> None:
    with pytest.raises(
        BadInput, match="definitions=official has metrics for doc_edit, code, math, and the task is abg_"
    ):
        check(load_config("evaluate", ["task=abg_coqa", "definitions=official"]), "evaluate")


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("extract_prompt='{what}'", "judge.extract_prompt has braces that stand for nothing"),
        ("extract_prompt='Copy the {extract_type}.'", "judge.extract_prompt has no {chat_history}, so the model would"),
        (
            "accuracy_prompt='Is it {single_turn_prompt}?'",
            "accuracy_prompt has no {ground_truth} and no {chat_history}",
        ),
        ("interactivity_prompt='Rate it.'", "judge.interactivity_prompt has no {chat_history}"),
    ],
)
def test_a_prompt_that_cannot_be_filled_in_is_named(prompt: str, said: str) -> None:
    config = load_config("train", ["judge=local", "definitions=official", f"judge.{prompt}"])
    with pytest.raises(BadInput, match=said):
        check(config)


def refused(overrides: list[str]) -> str:
    config = load_config("train", ["definitions=official", *overrides])
    with pytest.raises(BadInput) as found:
        check_machine(config, load_splits(config.task))
    return str(found.value)


@pytest.mark.parametrize("name", ["extract", "accuracy"])
def test_a_prompt_that_nothing_asks_is_refused(name: str) -> None:
    config = load_config("train", ["judge=local", f"judge.{name}_prompt='{{chat_history}}'"])
    with pytest.raises(BadInput, match=f"judge.{name}_prompt is set, and no metric of task=doc_edit with"):
        check_machine(config, load_splits(config.task))


def test_official_metrics_need_a_judge(bytewise: None) -> None:
    message = refused(["judge=none"])
    assert "task.metrics.bleu (collab.rewards.official.ChatBleu) is measured by a judge" in message
    assert "or take definitions=collab" in message


def test_an_estimate_without_the_judge_that_a_run_needs_is_refused(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["experiment=doc_edit", "definitions=official", "judge=none", "dry_run=true", f"output_dir={tmp_path}/run"]
    monkeypatch.setattr(sys, "argv", ["train.py", *given])
    with pytest.raises(SystemExit):
        main("train")
    assert "is measured by a judge, and judge=none is none" in capsys.readouterr().err


def test_a_machine_without_the_table_is_told_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(name: str) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(tiktoken, "get_encoding", offline)
    message = refused(["judge=local"])
    assert "task.metrics.tokens_read: tiktoken cannot download the table" in message and "TIKTOKEN_CACHE_DIR" in message


def test_a_machine_without_the_extra_is_told_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "tiktoken"]:
        monkeypatch.setitem(sys.modules, name, None)
    message = refused(["judge=local"])
    assert "tiktoken" in message and "pip install 'collab-llm[official]'" in message


# --- prompts ----------------------------------------------------------------------------------------------------------


def test_a_prompt_is_a_text_a_file_or_a_file_of_a_package(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine" / "texts").mkdir(parents=True)
    (tmp_path / "mine" / "__init__.py").write_text("raise RuntimeError('nothing of the package is run')")
    file = tmp_path / "mine" / "texts" / "ask.txt"
    file.write_text("Ask first.\n")
    monkeypatch.syspath_prepend(tmp_path)
    for value in ("Ask first.", f"file://{file}", "package://mine/texts/ask.txt"):
        assert prompt_text(value, "task.system_prompt") == "Ask first."
    config = load_config("train", ["task.proactive_prompt=package://mine/texts/ask.txt"])
    assert config.task.proactive_prompt == "Ask first."


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("file:///nowhere/prompt.txt", "there is no file /nowhere/prompt.txt"),
        ("package://no_such_package/prompt.txt", "the package no_such_package is not installed"),
        ("package://json/prompt.txt", "there is no file"),
        ("package://", "the package  is not installed"),
    ],
)
def test_a_prompt_that_is_not_there_is_named(value: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        prompt_text(value, "task.system_prompt")


def test_a_prompt_that_is_not_utf_8_is_named(tmp_path: Any) -> None:
    file = tmp_path / "ask.txt"
    file.write_bytes("Fragen Sie höflich.".encode("latin-1"))
    with pytest.raises(BadInput, match=r"ask.txt must be UTF-8, and byte 12 of it is not. Save it as UTF-8"):
        prompt_text(f"file://{file}", "task.system_prompt")


def _mark(messages: Sequence[Message]) -> str:
    found = re.search(r"mark ([0-9a-f]{8})", messages[0].content)
    assert found is not None
    return found[1]
