"""The database of a study, in SQLite and in a real PostgreSQL."""

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from postgres import postgres, programs

from collab.config.schema import EndpointConfig
from collab.study.store import FINAL, IDLE, Store
from collab.study.study_file import ArmConfig, StudyConfig
from collab.util.errors import BadInput

STUDY = StudyConfig("A title", "Yes?", {name: ArmConfig("base") for name in "abc"}, ["post", "story"], "CODE")


@pytest.fixture(
    params=[
        "sqlite",
        pytest.param("postgresql", marks=pytest.mark.skipif(programs() is None, reason="there is no PostgreSQL")),
    ]
)
def url(request, tmp_path):
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/study.sqlite3"
    else:
        with postgres() as found:
            yield found


@pytest.fixture
def store(url):
    opened = Store(url)
    yield opened
    opened.close()


def spread(values):
    counts = Counter(values)
    return max(counts.values()) - min(counts.values())


def test_assignment_is_balanced_among_arms_and_documents_even_when_many_join_at_once(store):
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda n: store.join(f"token {n}", STUDY), range(32)))
    records = store.records()
    assert len(records) == 32 and {r.arm for r in records} == set("abc")
    assert spread(r.arm for r in records) == 1
    assert all(spread(r.document for r in records if r.arm == arm) <= 1 for arm in "abc")
    assert store.join("token 5", STUDY) == store.find("token 5").id  # who is known keeps arm and document
    assert store.find("token 99") is None


def test_who_left_without_finishing_does_not_count(store, monkeypatch):
    left = store.join("left", STUDY)
    arm = store.find("left").arm
    for other in range(2):
        store.join(f"other {other}", STUDY)
    now = time.time() + IDLE + 1
    monkeypatch.setattr(time, "time", lambda: now)
    for other in range(2):
        store.save_draft(store.find(f"other {other}").id, "message", "still here", 0)
    store.join("next", STUDY)
    assert store.find("next").arm == arm
    store.submit(left, {"document": 3})  # finished, so it counts after all
    store.join("last", STUDY)
    assert store.find("last").arm != arm


def test_who_is_forgotten_leaves_nothing_and_the_others_stay(store, url, tmp_path):
    for name in ("stays", "goes"):
        who = store.join(name, STUDY, f"id of {name}")
        arm = store.find(name).arm
        store.start(who, f"topic of {name}")
        assert store.add_message(who, 1, f"message of {name}", [arm])
        store.add_reply(who, 1, arm, f"message of {name}", f"reply to {name}", "stop")
        store.rate(who, 1, "interaction", 5)
        store.save_draft(who, "document", f"draft of {name}", 0)
    assert store.forget("nobody") == 0
    assert store.forget("id of goes") == 1
    assert store.find("goes") is None
    assert [(r.topic, r.turns[0].text, len(r.ratings)) for r in store.records()] == [
        ("topic of stays", "message of stays", 1)
    ]
    if url.startswith("sqlite"):
        assert not any(b"goes" in file.read_bytes() for file in tmp_path.glob("study.sqlite3*"))
    stays = store.find("stays").id
    assert store.join("next", STUDY, str(stays)) > who  # nobody gets the number of somebody else
    with pytest.raises(BadInput, match="is the number of one participant and the platform's id of number"):
        store.forget(str(stays))
    assert store.forget(str(store.find("next").id)) == 1
    assert store.forget(str(stays)) == 1
    assert store.records() == []


def test_a_conversation_is_stored_and_nothing_is_overwritten(store):
    who = store.join("t", STUDY, "p-1")
    arm = store.find("t").arm
    store.start(who, "a topic")
    store.start(who, "another topic")
    assert not store.add_message(who, 2, "out of turn", [arm])
    assert store.add_message(who, 1, "schön 😀 'quoted' \"twice\"", [arm])
    assert store.add_message(who, 1, "schön 😀 'quoted' \"twice\"", [arm])  # sent again
    assert not store.add_message(who, 1, "of another tab", [arm])
    store.add_failure(who, 1, arm)
    assert store.add_message(who, 1, "instead", [arm])  # the reply to the first failed
    assert not store.add_message(who, 2, "without a reply to the first", [arm])
    assert store.add_reply(who, 1, arm, "schön 😀 'quoted' \"twice\"", "to the old message", "stop") is None
    assert store.add_reply(who, 1, arm, "instead", "a reply", "length") == "a reply"
    assert store.add_reply(who, 1, arm, "instead", "a second reply", "stop") == "a reply"
    assert not store.add_message(who, 1, "too late", [arm])
    store.rate(who, 1, "interaction", 4)
    store.rate(who, 1, "interaction", 5)
    store.submit(who, {"document": 8, "interaction": 9})
    store.submit(who, {"document": 1})
    record = store.find("t")
    (turn,) = record.turns
    assert (record.topic, record.external_id, turn.text, record.answered) == ("a topic", "p-1", "instead", 1)
    reply = turn.replies[arm]
    assert (reply.text, reply.finish_reason, reply.failures) == ("a reply", "length", 1)
    assert record.ratings == {(1, "interaction"): 5, (FINAL, "document"): 8, (FINAL, "interaction"): 9}
    assert record.consented_at <= record.started_at <= turn.sent_at <= reply.finished_at <= record.submitted_at


def test_a_draft_of_an_old_version_is_refused(store):
    who = store.join("t", STUDY)
    assert store.save_draft(who, "document", "one", 0) == 1
    assert store.save_draft(who, "document", "two", 1) == 2
    assert store.save_draft(who, "document", "of another window", 1) is None
    assert store.save_draft(who, "document", "two", 1) == 2  # the same text is no conflict
    store.save_draft(who, "message", "half", 0)
    store.add_message(who, 1, "half a message", ["a"])
    assert store.find("t").drafts == {"document": ("two", 2), "message": ("", 2)}


def test_a_study_that_runs_keeps_its_settings(url, store):
    store.bind(StudyConfig("A title", "Yes?", {"a": ArmConfig("mistyped")}, ["poem"], "CODE"))
    store.bind(STUDY)  # nobody has taken part yet
    store.join("t", STUDY)
    moved = {name: ArmConfig("base", EndpointConfig(base_url="http://other/v1", read_timeout=9)) for name in "abc"}
    store.bind(StudyConfig("Another title", "Other words", moved, STUDY.documents, "CODE2"))
    again = Store(url)
    with pytest.raises(BadInput, match="documents, min_turns differ from when this study began"):
        again.bind(StudyConfig("A title", "Yes?", STUDY.arms, ["post"], "CODE", min_turns=3))
    with pytest.raises(BadInput, match="arms differ"):
        again.bind(StudyConfig("A title", "Yes?", {"a": ArmConfig("other")}, STUDY.documents, "CODE"))
    again.close()


def test_a_database_that_cannot_be_opened_is_refused_without_its_password():
    for url in ("postgresql://me:s3cret@127.0.0.1:1/nothing", "mysql://me:s3cret@host/x", "no url"):
        with pytest.raises(BadInput) as error:
            Store(url)
        assert "s3cret" not in str(error.value)
