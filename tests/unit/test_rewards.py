"""R* (Eq. 2-4) by hand arithmetic, missing scores, and cheap tricks that must not pay."""

import asyncio
import math
from dataclasses import replace

import pytest
from composing import load_config
from scripted import (
    QUESTIONS,
    TRICKS,
    ScriptedModel,
    asks_and_never_writes,
    asks_the_same,
    dumps_text,
    echoes,
    good_collaborator,
    says_nothing,
    spoken,
)

from collab.app import build
from collab.chat.endpoints import Endpoints
from collab.conversation import Candidate, Conversation, Goal, Reply, Score
from collab.datamodules.goals import load_splits
from collab.parsing.agenda_items import notes_of
from collab.parsing.agenda_state import delivers, read
from collab.randomness import RngKey
from collab.rewards.document import Copied, Coverage, Repetition, Unsupported, copied, repetition, unsupported
from collab.rewards.metrics import (
    AgendaInteractivity,
    Bleu,
    Judged,
    PertinentQuestions,
    TokenPenalty,
    assistant_tokens,
    extract,
)
from collab.rewards.reward import ConversationReward
from collab.simulation.conversation_loop import Players, play
from collab.simulation.multiturn import multiturn_reward
from collab.util.errors import BadInput

# Eight words, so that n-gram counts are easy; an agenda of three items.
GOAL = Goal(
    "mill",
    "A note.",
    "we meet at noon by the old mill",
    {"title": "the walk", "preferences": {"tone": "warm", "audience": "hikers"}},
)
OPEN = "What should the text include?"
WHO, TONE = "Who is going to read it?", "What tone should it have?"
BOTH = f"{WHO} {TONE}"
ONE_WORD_OFF = "we meet at noon by the new mill"
# Matching 1- to 4-grams of ONE_WORD_OFF: 7/8, 5/7, 4/6, 3/5; their product is 1/4, and BLEU its fourth root.
BLEU_OF_ONE_WORD_OFF = 0.25**0.25


def finished(*replies: str, goal: Goal = GOAL) -> Conversation:
    conversation = Conversation(goal)
    for reply in replies:
        conversation = conversation.with_user("(whatever the user said)").with_reply(spoken(reply))
    return conversation.with_end("max_turns")


def value(metric, conversation: Conversation) -> float | None:
    return asyncio.run(metric(conversation))


# --- extraction, Eq. 3 -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("replies", "artefact"),
    [
        ((), ""),
        (("A first draft.", "Dear all, we meet at noon."), "Dear all, we meet at noon."),
        (("Sure! Which day? Dear all, we meet.\nIs that fine?",), "Sure! Dear all, we meet."),
        (("A good draft.", "Which day? Which place?"), ""),
        (("A good draft.", ""), ""),
    ],
)
def test_extraction_takes_the_latest_message_without_its_questions(replies, artefact):
    assert extract(finished(*replies)) == artefact


@pytest.mark.parametrize(
    ("replies", "bleu"),
    [
        ((GOAL.reference,), 1.0),
        ((ONE_WORD_OFF,), BLEU_OF_ONE_WORD_OFF),
        ((f"{ONE_WORD_OFF}\nIs that what you had in mind?",), BLEU_OF_ONE_WORD_OFF),
        (("we meet at noon",), math.exp(1 - 8 / 4)),  # every n-gram matches, at half the length
        ((GOAL.reference, "Is that what you had in mind?"), 0.0),
        ((GOAL.reference, ""), 0.0),
    ],
)
def test_bleu(replies, bleu):
    assert value(Bleu(), finished(*replies)) == pytest.approx(bleu, abs=1e-12)


def test_bleu_stays_within_one():
    goal = replace(GOAL, reference="Bring a red cup. We meet under the old oak at noon.")
    assert value(Bleu(), finished(goal.reference, goal=goal)) == 1.0


@pytest.mark.parametrize(("ended_by", "bleu"), [("window", 0.0), ("max_turns", 1.0), ("satisfied", 1.0)])
def test_what_the_window_cut_off_may_have_no_finished_text(ended_by, bleu):
    conversation = replace(finished(GOAL.reference), ended_by=ended_by)
    assert value(Bleu(finished_only=True), conversation) == bleu
    assert value(Bleu(), conversation) == 1.0
    with pytest.raises(BadInput, match="must be true or false"):
        Bleu(finished_only="yes")


# --- the intrinsic part, Eq. 4 ---------------------------------------------------------------------------------------


def test_token_penalty_counts_the_assistants_tokens_of_all_turns():
    conversation = finished(OPEN, ONE_WORD_OFF)
    assert assistant_tokens(conversation) == 5 + 8
    assert value(TokenPenalty(0.01), conversation) == pytest.approx(0.13)
    assert value(TokenPenalty(0.01), finished("")) == 0


def test_a_reply_without_ids_has_tokens_too():
    """One made by hand, or read from a file."""
    text = " ".join(["walking"] * 40)
    by_hand = Conversation(GOAL).with_user("Hi").with_reply(Reply(text)).with_user("And?").with_reply(Reply("多谢"))
    assert assistant_tokens(by_hand) == 80 + 2
    assert value(TokenPenalty(0.001), by_hand) == pytest.approx(0.082)


def test_token_penalty_saturates_at_one():
    assert value(TokenPenalty(0.2), finished(OPEN)) == 1.0
    assert value(TokenPenalty(0.2), finished(OPEN, ONE_WORD_OFF)) == 1.0


@pytest.mark.parametrize("coefficient", [-1e-4, math.inf, math.nan, "1e-4", None, True])
def test_a_coefficient_that_is_none_is_refused(coefficient):
    with pytest.raises(BadInput, match="must be a finite number of at least 0"):
        TokenPenalty(coefficient)
    assert value(TokenPenalty(0), finished(OPEN)) == 0


def test_a_reply_cut_at_the_limit_is_scored_as_it_stands():
    reply = spoken(GOAL.reference + " and more of it", max_new_tokens=8)
    assert reply.finish_reason == "length"
    conversation = Conversation(GOAL).with_user("(opening)").with_reply(reply).with_end("max_turns")
    assert value(Bleu(), conversation) == 1.0
    assert value(TokenPenalty(0.01), conversation) == pytest.approx(0.08)


NO_NOTE = "Here is a long text that says nothing of what was told."


@pytest.mark.parametrize(
    ("replies", "share"),
    [
        ((OPEN, GOAL.reference), 1 / 2),  # a note counts twice as much as a preference
        ((WHO, GOAL.reference), 0.5 / 2),
        ((OPEN, WHO, GOAL.reference), 1.5 / 2),
        ((OPEN, BOTH, GOAL.reference), 1),
        ((f"{OPEN} {WHO} {TONE}", GOAL.reference), (1.5 - 1) / 2),  # the third is one too many
        ((OPEN, WHO, OPEN, GOAL.reference), (1.5 - 1) / 2),
        ((OPEN, WHO, "What points should it mention?", GOAL.reference), (1.5 - 1) / 2),
        ((OPEN, WHO, "Who will read it?", GOAL.reference), (1.5 - 1) / 2),
        ((OPEN, BOTH, OPEN, OPEN, GOAL.reference), 0),  # 2 - 2
        ((OPEN, OPEN, OPEN, OPEN, GOAL.reference), 0),  # and no less
        ((OPEN, WHO, "How do clouds float?", GOAL.reference), (1.5 - 1) / 2),  # asks for nothing
        ((OPEN, WHO, "How does the mill work?", GOAL.reference), (1.5 - 1) / 2),  # it was told of the mill
        ((OPEN, WHO, "When, where and how much is it?", GOAL.reference), (1.5 - 1) / 2),  # too many slots: for nothing
        ((OPEN, f"{ONE_WORD_OFF}. {WHO}"), 1 / 2),  # the last message is never answered
        ((), 0),
    ],
)
def test_interactivity_is_the_share_of_the_agenda_that_questions_brought_to_light(replies, share):
    assert value(AgendaInteractivity(needless_cost=1), finished(*replies)) == pytest.approx(share)


@pytest.mark.parametrize("ended_by", ["max_turns", "patience", "satisfied", "invalid: leak"])
@pytest.mark.parametrize("last", [WHO, "", "I am satisfied.", "noon, mill"])
def test_interactivity_is_0_without_a_text_in_the_last_message(last, ended_by):
    assert value(AgendaInteractivity(), replace(finished(OPEN, last), ended_by=ended_by)) == 0


@pytest.mark.parametrize("last", [GOAL.reference, NO_NOTE])
def test_interactivity_asks_for_a_text_and_for_no_note_in_it(last):
    assert value(AgendaInteractivity(), finished(OPEN, last)) == pytest.approx(1 / 2)


def test_interactivity_stays_where_there_was_no_last_turn():
    conversation = replace(finished(OPEN, "Hm."), ended_by="window")
    assert value(AgendaInteractivity(), conversation) == pytest.approx(1 / 2)


AGENDA = {"opening": "How many are there?", "items": [{"kind": "quantity", "text": "There are 7."}]}


@pytest.mark.parametrize(
    ("makes", "last", "delivered"),
    [
        ("text", "we meet at noon by the old mill", True),  # eight words
        ("text", "we meet at noon by the mill", False),  # seven
        ("text", "Shall we meet at noon by the old mill?", False),
        ("answer", "Then there are 84 rolls.", True),
        ("answer", "I cannot tell.", False),
        ("program", "```python\nx = 1\n```", True),
        ("program", "I would use a loop for this.", False),
        ("reply", "No.", True),
    ],
)
def test_a_conversation_delivers_with_its_last_message_alone(makes, last, delivered):
    goal = replace(GOAL, metadata={"agenda": {**AGENDA, "makes": makes}})
    assert delivers(finished(last, goal=goal)) is delivered
    assert delivers(finished(last, "", goal=goal)) is (makes == "reply")


def test_what_has_no_turn_delivers_nothing():
    assert delivers(Conversation(GOAL)) is False


def test_interactivity_of_a_context_counts_the_answer_that_waits():
    context = replace(finished(OPEN), ended_by="").with_user("(the answer)")
    assert value(AgendaInteractivity(), context) == pytest.approx(1 / 2)


@pytest.mark.parametrize(("cost", "share"), [(0, 1 / 2), (0.25, 0.375), (1, 0)])
def test_what_a_needless_question_costs_is_an_option(cost, share):
    conversation = finished(OPEN, OPEN, GOAL.reference)
    assert value(AgendaInteractivity(needless_cost=cost), conversation) == pytest.approx(share)


@pytest.mark.parametrize(("items_per_answer", "share"), [(1, 0), (2, 0.5 / 2), (3, 1)])
def test_questions_beyond_items_per_answer_cost(items_per_answer, share):
    """One item and two too many; two and one too many; three."""
    conversation = finished(f"{OPEN} {WHO} {TONE}", GOAL.reference)
    assert value(AgendaInteractivity(items_per_answer, needless_cost=1), conversation) == pytest.approx(share)


@pytest.mark.parametrize("cost", [-0.5, math.inf, math.nan, "1", None, True])
def test_a_cost_that_is_none_is_refused(cost):
    with pytest.raises(BadInput, match=r"needless_cost .* must be a finite number of at least 0"):
        AgendaInteractivity(needless_cost=cost)


@pytest.mark.parametrize(
    ("replies", "share"),
    [
        ((OPEN, GOAL.reference), 1),
        ((OPEN, OPEN, GOAL.reference), 1 / 2),
        ((f"{OPEN} {WHO} {TONE}",), 2 / 3),  # the third is one too many
        (("How do clouds float?", WHO), 1 / 2),
        (("How do clouds float?",), 0),
        ((f"{WHO} {WHO}",), 1 / 2),  # the same again
        (("When, where and how much is it?",), 0),  # too many slots
        (("How much does it cost?",), 1),  # new, though the user has no wish there
        ((GOAL.reference,), None),
        ((), None),
    ],
)
def test_pertinent_is_the_share_of_the_questions_that_ask_for_something_new(replies, share):
    found = value(PertinentQuestions(), finished(*replies))
    assert found is None if share is None else found == pytest.approx(share)


# --- the text: what is in it, what is said twice, what is pasted -----------------------------------------------------

NOTED = replace(GOAL, metadata={"title": "the walk", "notes": ["noon, old mill", "bring a red cup", "led by Ana"]})


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("We meet at the old mill at noon.", 1 / 3),
        ("We meet at the old mill at noon, and Ana leads.", 2 / 3),
        ("At the mill, bring a cup; it is led well.", 1 / 3),  # 1 of 3 words, 2 of 3, and no Ana
        ("", 0),
    ],
)
def test_coverage_is_the_share_of_the_notes_in_the_text(text, share):
    assert value(Coverage(), finished(OPEN, text, goal=NOTED)) == pytest.approx(share)


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("We meet at noon. Bring a red cup. At noon we meet.", 1 / 3),
        ("Noon, mill, oak, cup, barn. Noon, mill, oak, cup.", 1 / 2),  # 4 of 5 words
        ("Noon, mill, oak, cup. Mill, oak, noon.", 0),  # 3 of 4
        ("Noon, mill, oak, cup. Noon, mill, oak.", 1 / 5),  # and one of five 3-grams
        ("Bring a red cup; bring your red cup: bring the red cup", 2 / 3),  # clauses
        ("Thanks! Thanks! Bring a red cup.", 0),  # a single word says nothing
        ("", 0),
    ],
)
def test_repetition_is_the_share_of_the_sentences_that_were_said_before(text, share):
    assert repetition(text) == pytest.approx(share)
    assert value(Repetition(), finished(text)) == pytest.approx(share)


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("a b c a b c", 1 / 4),  # abc of abc, bca, cab, abc
        ("so on and so on and so on and so on", 6 / 9),
        ("la " * 12, 9 / 10),
        ("we meet at noon", 0),
        ("a b", 0),  # no three words
        ("We meet at noon. At noon we meet. Bring a red cup.", 1 / 3),  # clauses more than 3-grams
        ("We meet at noon, we meet at noon, and we meet at noon by the old mill", 4 / 15),  # 3-grams more than clauses
    ],
)
def test_a_loop_is_repetition_with_or_without_sentences(text, share):
    assert repetition(text) == pytest.approx(share)


def test_pasting_something_in_between_hides_no_loop():
    assert repetition("we meet at noon x we meet at noon y we meet at noon z") == pytest.approx(4 / 13)


@pytest.mark.parametrize(
    ("text", "bleu"),
    [
        ("we meet by the new one", 0),  # it has the reference's words, and of neither note enough
        ("bring a red cup and meet at noon", None),
        (GOAL.reference, 1.0),
    ],
)
def test_bleu_may_ask_for_a_note(text, bleu):
    """None: as without the option."""
    done = finished(text, goal=NOTED)
    without = value(Bleu(), done)
    assert without > 0
    assert value(Bleu(with_notes=True), done) == (without if bleu is None else bleu)


@pytest.mark.parametrize("flag", ["yes", 1, None])
def test_an_option_of_bleu_that_is_neither_true_nor_false_is_refused(flag):
    with pytest.raises(BadInput, match="with_notes .* must be true or false"):
        Bleu(with_notes=flag)


def heard_by(text: str, *messages: str) -> Conversation:
    conversation = Conversation(GOAL)
    for message in messages[:-1]:
        conversation = conversation.with_user(message).with_reply(spoken("Hm."))
    return conversation.with_user(messages[-1]).with_reply(spoken(text)).with_end("max_turns")


@pytest.mark.parametrize(
    ("text", "messages", "share"),
    [
        ("a b c d e f g", ("x a b c d e f y",), 1 / 2),  # of abcdef and bcdefg, the first
        ("A b, c d: e F!", ("a b c d e f",), 1),
        ("a b c d e f", ("a b c", "d e f"), 0),  # one message must hold them all
        ("a b c d e f g h", ("a b c d e f", "c d e f g h"), 2 / 3),
        ("a b c d e", ("a b c d e",), 0),  # no six words
        ("a b c x d e f", ("a b c d e f",), 0),
        ("Why? a b c d e f", ("why",), 0),
        ("", ("a b c d e f",), 0),
    ],
)
def test_copied_is_the_share_of_six_words_in_a_row_that_the_user_said(text, messages, share):
    assert copied(text, list(messages)) == pytest.approx(share)
    if "?" not in text:
        assert value(Copied(), heard_by(text, *messages)) == pytest.approx(share)


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("Hikers, we meet at noon by the old mill.", 0),
        ("We meet at noon, and it is done quickly.", 1 / 2),
        ("We meet at noon. The mill has lovely views. A brass band plays.", 2 / 3),
        ("Join us at noon! Please read this note, thank you.", 0),  # a text may say so whatever it is about
        ("A warm walk, warmly.", 1 / 2),  # it is to have its tone, not to name it
        ("And so it is.", 0),  # no content words
        ("", 0),
    ],
)
def test_unsupported_is_the_share_of_the_clauses_that_say_what_nobody_knows(text, share):
    assert unsupported(GOAL, text) == pytest.approx(share)
    assert value(Unsupported(), finished(text)) == pytest.approx(share)


def test_copied_looks_at_the_final_text_alone():
    done = Conversation(GOAL).with_user("a b c d e f").with_reply(spoken("a b c d e f")).with_user("And?")
    assert value(Copied(), done.with_reply(spoken("g h i j k l")).with_end("max_turns")) == 0


TWICE = "We meet at noon by the mill. We meet at noon by the mill."


@pytest.mark.parametrize(
    ("metric", "expected"), [(Coverage, 1), (Repetition, 1 / 2), (Copied, 1)], ids=["coverage", "repetition", "copied"]
)
def test_a_text_that_the_window_cut_off_has_no_parts(metric, expected):
    done = heard_by(TWICE, TWICE)
    assert value(metric(finished_only=True), done) == expected
    assert value(metric(finished_only=True), replace(done, ended_by="window")) == 0
    assert value(metric(), replace(done, ended_by="window")) == expected
    with pytest.raises(BadInput, match="must be true or false"):
        metric(finished_only="no")


@pytest.mark.parametrize(
    "metric",
    [Coverage(), Repetition(), Copied(), Unsupported()],
    ids=["coverage", "repetition", "copied", "unsupported"],
)
def test_metrics_of_the_text_apply_where_a_text_is_made(metric):
    agenda = {"opening": "How many are there?", "items": []}
    for makes, there in [("text", True), ("answer", False), ("program", False), ("reply", False)]:
        assert metric.applies(replace(GOAL, metadata={"agenda": {**agenda, "makes": makes}})) is there
    assert metric.applies(GOAL)


# --- R*, Eq. 2 -------------------------------------------------------------------------------------------------------


def reward_of(**metrics) -> ConversationReward:
    return ConversationReward(metrics)


def test_reward_of_a_scripted_conversation_by_hand():
    reward = reward_of(
        bleu=(2.0, Bleu()), token_penalty=(-1.0, TokenPenalty(0.01)), interactivity=(0.6, AgendaInteractivity())
    )
    score = value(reward, finished(OPEN, ONE_WORD_OFF))
    # bleu 0.25^(1/4) = 0.70710678; 13 tokens at 0.01; the note of two notes' worth: 2 * 0.70710678 - 0.13 + 0.6 * 1/2
    assert score.reward == pytest.approx(1.58421356)
    assert score.parts == pytest.approx({"bleu": 0.70710678, "token_penalty": 0.13, "interactivity": 1 / 2})


class Sometimes:
    """A metric whose value is had only for conversations that end with a given text."""

    def __init__(self, values: dict[str, float]) -> None:
        self.values = values

    async def __call__(self, conversation: Conversation) -> float | None:
        return self.values.get(conversation.assistant_texts[-1])


def test_missing_part_leaves_the_reward_missing():
    reward = reward_of(bleu=(2.0, Bleu()), judge=(1.0, Sometimes({})))
    score = value(reward, finished(GOAL.reference))
    assert score.reward is None
    assert score.parts == {"bleu": 1.0, "judge": None}


def test_a_missing_part_that_is_only_watched_leaves_the_reward_whole():
    reward = reward_of(bleu=(2.0, Bleu()), judge=(0.0, Sometimes({})), pertinent=(0.0, PertinentQuestions()))
    score = value(reward, finished(GOAL.reference))
    assert score.reward == 2.0
    assert score.parts == {"bleu": 1.0, "judge": None, "pertinent": None}


def test_a_part_that_is_only_watched_adds_nothing():
    reward = reward_of(bleu=(2.0, Bleu()), judge=(0.0, Sometimes({GOAL.reference: 0.5})))
    score = value(reward, finished(GOAL.reference))
    assert score.reward == 2.0 and score.parts == {"bleu": 1.0, "judge": 0.5}


class Elsewhere(Sometimes):
    def applies(self, goal: Goal) -> bool:
        return goal.id != GOAL.id


def test_a_metric_that_does_not_apply_to_a_goal_is_no_part_of_its_reward():
    reward = reward_of(bleu=(2.0, Bleu()), judge=(1.0, Elsewhere({GOAL.reference: 0.5})))
    score = value(reward, finished(GOAL.reference))
    assert score.reward == 2.0 and score.parts == {"bleu": 1.0}
    score = value(reward, finished(GOAL.reference, goal=replace(GOAL, id="other")))
    assert score.reward == 2.5 and score.parts == {"bleu": 1.0, "judge": 0.5}
    assert value(reward, finished("x", goal=replace(GOAL, id="other"))).reward is None  # it applies, and has no value


def test_an_invalid_conversation_is_not_measured():
    class Never:
        async def __call__(self, conversation: Conversation) -> float:
            raise AssertionError("it was measured")

    talk = replace(finished("no"), ended_by="invalid: policy")
    reward = reward_of(judge=(1.0, Never()), other=(0.0, Never()), none=(1.0, Elsewhere({})))
    assert value(reward, talk) == Score(None, {"judge": None, "other": None})


def test_the_replies_of_a_model_are_kept_beside_its_value():
    class Asks:
        async def __call__(self, conversation: Conversation) -> Judged:
            return Judged(0.5, ("so", "there"))

    score = value(reward_of(judge=(2.0, Asks()), bleu=(1.0, Bleu())), finished(GOAL.reference))
    assert score == Score(2.0, {"judge": 0.5, "bleu": 1.0}, {"judge": ("so", "there")})


def test_zero_is_a_value():
    score = value(reward_of(judge=(1.0, Sometimes({"no": 0.0}))), finished("no"))
    assert score.reward == 0.0


def test_mean_of_a_part_leaves_missing_values_out():
    reward = reward_of(judge=(1.0, Sometimes({"a": 0.5, "b": 0.0})))
    scores = tuple(value(reward, finished(text)) for text in ("a", "b", "c"))
    assert Candidate(Reply(""), scores=scores).part("judge") == 0.25
    assert Candidate(Reply(""), scores=scores[2:]).part("judge") is None


# --- what is shipped -------------------------------------------------------------------------------------------------


def metrics_of(*overrides: str) -> dict:
    return load_config("train", list(overrides)).task.metrics


def test_weights_of_doc_edit():
    weights = {name: metric.weight for name, metric in metrics_of("experiment=doc_edit").items()}
    written = {"coverage": 2.0, "bleu": 24.0, "copied": -6.0, "repetition": -10.0, "unsupported": -4.0}
    assert weights == {**written, "token_penalty": -1.0, "interactivity": 4.0, "pertinent": 0.0, "official_bleu": 0.0}


@pytest.mark.parametrize(("experiment", "flag"), [("doc_edit", True), ("paper/doc_edit", False)])
def test_the_text_has_to_be_finished_but_in_the_papers_reward(experiment, flag):
    metrics = metrics_of(f"experiment={experiment}", "definitions=collab")
    for name in ("coverage", "bleu", "copied", "repetition", "unsupported"):
        assert metrics[name].options["finished_only"] is flag, name
    assert metrics["bleu"].options["with_notes"] is metrics["repetition"].options["with_notes"] is flag


def test_repetition_may_count_only_where_a_text_says_a_note():
    twice = "Nothing is here to say. Nothing is here to say."
    assert value(Repetition(), finished(twice)) > 0 == value(Repetition(with_notes=True), finished(twice))


# --- cheap tricks, under the task's own weights ----------------------------------------------------------------------

# Two questions and the document take three turns.
CONFIG = load_config("train", ["experiment=doc_edit", "task.max_turns=3"])
SIMULATION = build.simulation(CONFIG, Endpoints(CONFIG), lambda: None)
# Three goals whose notes the four questions ask for.
GOALS = [
    goal
    for goal in load_splits(CONFIG.task).test
    if len([item for item in read(goal, QUESTIONS).given if item < len(notes_of(goal))]) == 4
][:3]


def players(script) -> Players:
    return SIMULATION.players(ScriptedModel(script))


def whole(script, goal: Goal, seed: int = 1) -> Conversation:
    key = RngKey(seed, split="test", goal=goal.id)
    return asyncio.run(play(players(script), Conversation(goal, CONFIG.task.system_prompt), key))


def context_of(script, goal: Goal, turn: int) -> Conversation:
    start = Conversation(goal, CONFIG.task.system_prompt)
    return asyncio.run(play(players(script), start, RngKey(1), until_context=turn))


def responses(context: Conversation, scripts, future, window: int) -> list[Candidate]:
    """MR of what each script says next, where `future` goes on."""
    return asyncio.run(
        multiturn_reward(
            context,
            [spoken(script(context.messages(), RngKey(1)), CONFIG.task.max_new_tokens) for script in scripts],
            players=players(future),
            reward=SIMULATION.reward,
            window=window,
            num_samples=2,
            key=RngKey(1, split="train", goal=context.goal.id),
        )
    )


@pytest.mark.parametrize("goal", GOALS, ids=lambda goal: goal.id)
def test_good_collaborator_learns_the_document_by_asking(goal):
    done = whole(good_collaborator, goal)
    assert done.assistant_texts[:2] == list(QUESTIONS)
    score = value(SIMULATION.reward, done)
    notes = len(notes_of(goal))
    told = sum(item < notes for item in read(goal, done.assistant_texts[:2]).given)
    assert score.parts["coverage"] == told / notes >= 0.4  # what it was told is in its text
    assert score.parts["copied"] < 0.1 and score.parts["repetition"] == 0
    assert score.parts["interactivity"] > 0.15 and score.reward > 1.6


@pytest.mark.parametrize("goal", GOALS, ids=lambda goal: goal.id)
@pytest.mark.parametrize("trick", TRICKS, ids=lambda trick: trick.__name__)
def test_trick_scores_below_a_good_collaborator_over_whole_conversations(trick, goal):
    for seed in range(4):  # of the user's phrasing
        good, cheap = (value(SIMULATION.reward, whole(s, goal, seed)).reward for s in (good_collaborator, trick))
        assert cheap < good / 2


@pytest.mark.parametrize("goal", GOALS, ids=lambda goal: goal.id)
def test_dump_that_nothing_cuts_scores_no_better(goal):
    text = dumps_text(Conversation(goal).with_user("Hello!").messages(), RngKey(1))
    score = value(SIMULATION.reward, finished(text, text, text, goal=goal))
    assert assistant_tokens(finished(text)) > 4 * CONFIG.task.max_new_tokens
    assert score.reward < value(SIMULATION.reward, whole(good_collaborator, goal)).reward / 2


@pytest.mark.parametrize("goal", GOALS, ids=lambda goal: goal.id)
@pytest.mark.parametrize("trick", TRICKS, ids=lambda trick: trick.__name__)
def test_trick_scores_below_a_good_collaborator_in_mr_of_the_first_response(trick, goal):
    """Each first response with the futures that its own speaker makes of it, to the end of the conversation."""
    context = context_of(trick, goal, 1)
    [good] = responses(context, [good_collaborator], future=good_collaborator, window=2)
    [cheap] = responses(context, [trick], future=trick, window=2)
    assert cheap.mr < good.mr / 2


# What a policy that is good otherwise may say at one turn. At turn 1 any pertinent question is good; the last turn is
# for writing.
AT_TURN = [
    *((1, trick) for trick in (dumps_text, says_nothing, echoes)),
    *((2, trick) for trick in (asks_the_same, dumps_text, says_nothing, echoes)),
    *((3, trick) for trick in (asks_the_same, asks_and_never_writes, dumps_text, says_nothing, echoes)),
]


@pytest.mark.parametrize("window", sorted({CONFIG.sampler.window, 2}))
@pytest.mark.parametrize(("turn", "trick"), AT_TURN, ids=lambda given: getattr(given, "__name__", given))
def test_one_cheap_response_costs_a_good_collaborator_mr(turn, trick, window):
    for goal in GOALS:
        context = context_of(good_collaborator, goal, turn)
        good, cheap = responses(context, [good_collaborator, trick], future=good_collaborator, window=window)
        assert cheap.mr < good.mr
