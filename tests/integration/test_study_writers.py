"""Replies that are written while a database fails, a message changes, or a person asks for an older turn."""

import asyncio
import json

from collab.conversation import Reply
from collab.study.server import Pages
from collab.study.store import Store
from collab.study.study_file import ArmConfig, StudyConfig
from collab.study.writers import Writers

STUDY = StudyConfig("A title", "Yes?", {"a": ArmConfig("base"), "b": ArmConfig("base")}, ["post"], "CODE")


class Speaker:
    """Answers after `meanwhile` has run."""

    def __init__(self, meanwhile=lambda: None):
        self.meanwhile, self.asked = meanwhile, []

    async def reply(self, turns, message, participant, tell, attempt=0):
        self.asked.append(message)
        self.meanwhile()
        return Reply(f"answer to {message}")


def begun(tmp_path, arms=("a",)):
    store = Store(f"sqlite:///{tmp_path}/study.sqlite3")
    who = store.join("t", STUDY, arms=["a"])
    store.start(who, "a topic")
    assert store.add_message(who, 1, "first", arms)
    return store, who


def write(writers, record):
    async def play():
        writing = writers.start(record, "a")
        async with asyncio.timeout(10):
            return [text async for text in writing.texts()], writing.state

    return asyncio.run(play())


def test_readers_are_told_when_the_database_fails(tmp_path):
    store, _ = begun(tmp_path)
    record = store.find("t")

    def away(*given):
        raise OSError("disk full")

    store.add_reply = store.add_failure = away
    writers = Writers(store, {"a": Speaker()})
    assert write(writers, record)[1] == "failed" and writers.of(record.id, "a") is None
    store.close()


def test_a_reply_to_a_message_that_was_changed_meanwhile_is_not_stored(tmp_path):
    store, who = begun(tmp_path)
    store.add_failure(who, 1, "a")
    writers = Writers(store, {"a": Speaker(lambda: store.add_message(who, 1, "changed", ["a"]))})
    assert write(writers, store.find("t"))[1] == "failed"
    (turn,) = store.find("t").turns
    assert turn.text == "changed" and turn.replies["a"].text is None
    store.close()


def test_an_older_message_that_failed_is_not_answered_by_the_reply_to_another(tmp_path):
    store, who = begun(tmp_path, ("a", "b"))
    store.add_failure(who, 1, "a")
    store.add_reply(who, 1, "b", "first", "of b", "stop")
    stale = store.find("t")
    assert store.add_message(who, 2, "second", ["a", "b"])
    speaker = Speaker()
    pages = Pages(STUDY, store, {"a": speaker, "b": speaker}, side_by_side=True)

    async def events(record, turn, again):
        last = [event async for event in pages._events("t", record, turn, "a", again)][-1]
        name, data = last.removeprefix("event: ").split("\n", 1)
        return name, json.loads(data.removeprefix("data: "))["text"]

    async def play():
        assert await events(store.find("t"), 1, 1) == ("failed", "")
        assert await events(stale, 1, 1) == ("failed", "")  # read before the second message came
        assert await events(store.find("t"), 2, 0) == ("done", "answer to second")

    asyncio.run(play())
    assert speaker.asked == ["second"]
    store.close()
