"""The server of a user study over plain HTTP, as a lab starts it: refusals, limits, the load of many at once."""

import asyncio
import json
import os
import stat

import httpx
import pytest
from fault_server import FaultServer
from study import Caller, StudyServer, exported, study_file

from collab.study.main import main
from collab.study.security import csrf_of

MODELS = ("one", "two", "three")


@pytest.fixture(scope="module")
def stub():
    with FaultServer(models=MODELS, say=lambda call: f"About: {call['messages'][-1]['content']}") as server:
        yield server


@pytest.fixture
def served(stub, tmp_path):
    with StudyServer(study_file(tmp_path, stub.url, min_turns=4, rate_every=2), tmp_path / "data") as server:
        yield server


def test_what_is_out_of_turn_or_forged_is_refused(served, stub):
    async def play():
        person, other = Caller(served.url), Caller(served.url)
        assert (await person.post("/message", turn=1, text="Hi")).status_code == 403  # no cookie
        page = await person.get("/?PROLIFIC_PID=<script>")
        assert "<script>" not in page.text.replace('<script src="/static/study.js" defer></script>', "")
        for name, value in (("cache-control", "no-store"), ("x-content-type-options", "nosniff")):
            assert page.headers[name] == value
        assert "default-src 'none'" in page.headers["content-security-policy"]
        cookie = page.headers["set-cookie"]
        assert "HttpOnly" in cookie and "SameSite=lax" in cookie
        right, person.csrf = person.csrf, "0" * 64
        assert (await person.form("/consent", agree="yes")).status_code == 403
        person.csrf = right
        assert (await person.form("/consent")).status_code == 400  # without agreeing
        await person.begin('A topic with <b>tags</b> & "quotes"')
        assert "&lt;b&gt;tags&lt;/b&gt;" in (await person.get()).text
        refused = [
            await person.post("/message", turn=2, text="out of turn"),
            await person.post("/message", turn=1, text=" "),
            await person.post("/message", turn=1, text="x" * 10_001),
            await person.post("/message", turn="1", text="x"),
            await person.post("/message", turn=2**70, text="x"),
            await person.post("/draft", name="arm", text="x", version=0),
            await person.post("/draft", name="document", text="x" * 600_000, version=0),
            await person.client.post("/draft", content=b"\xff", headers={"Content-Type": "application/json"}),
            await person.client.get("/reply", params={"turn": 1}),
            await person.client.get("/reply", params={"turn": "x"}),
        ]
        assert [r.status_code for r in refused] == [409, 400, 400, 400, 409, 400, 413, 400, 404, 400]
        assert all(response.json()["error"] for response in refused)
        assert "Conversation" in (await person.get("/final")).text  # too early
        for turn in (1, 2):
            assert (await person.post("/message", turn=turn, text=f"\ud83d\0 <i>{turn}</i>")).status_code == 200
            await person.reply(turn)
        assert (await person.post("/message", turn=3, text="unrated")).status_code == 409
        assert (await person.form("/rating", rating="11")).status_code == 400
        await person.form("/rating", rating="10")
        assert (await person.post("/message", turn=3, text="rated")).status_code == 200
        page = await person.get()
        assert "<i>" not in page.text and "&lt;i&gt;1&lt;/i&gt;" in page.text

        await other.get()  # another session, with its own right token, sees nothing of this
        assert (await other.client.get("/reply", params={"turn": 1})).status_code == 403
        person.client.cookies.set("study_session", "guess")
        assert "Before you begin" in (await person.get()).text
        assert (await other.client.get("/admin/data.zip")).text.count("Token") == 1
        async with httpx.AsyncClient(trust_env=False) as bare:  # as a form of another site would sign somebody in
            forged = {"csrf": csrf_of(""), "token": served.token}
            assert (await bare.post(f"{served.url}/admin/login", data=forged)).status_code == 403
        for _ in range(9):
            status = (await other.form("/admin/login", token="guess")).status_code
        assert status == 403 and (await other.form("/admin/login", token=served.token)).status_code == 429
        await person.client.aclose()
        await other.client.aclose()

    asyncio.run(play())
    assert stat.S_IMODE(os.stat(served.folder / "admin_token").st_mode) == 0o600


def test_when_the_time_is_over_the_final_questions_are_asked(stub, tmp_path):
    async def play():
        person = Caller(server.url)
        await person.begin()
        await person.post("/message", turn=1, text="Hi")
        await person.reply(1)
        assert "Conversation" in (await person.get("/final")).text  # one turn of eight
        await asyncio.sleep(2.5)
        late = await person.post("/message", turn=2, text="late")
        assert late.status_code == 409 and "has ended" in late.json()["error"]
        page = await person.get("/final")
        assert "Final questions" in page.text
        refused = await person.form("/final", document=" ", rating_document="3", rating_interaction="4", strengths="s")
        assert (
            refused.status_code == 400
            and "Your document is empty" in refused.text
            and ">\ns</textarea>" in refused.text
        )
        versions = {"version_document": "1", "version_strengths": "1"}
        refused = await person.form("/final", document="A text", **versions, rating_document="3")
        assert refused.status_code == 400 and "Choose a number" in refused.text and "A text</textarea>" in refused.text
        last = {"document": "Of a window left open", "version_document": "1", "version_strengths": "2"}
        refused = await person.form("/final", **last, rating_document="3", rating_interaction="4")
        assert refused.status_code == 400 and "changed in another window" in refused.text
        assert "A text</textarea>" in refused.text
        last |= {"document": "A text", "version_document": "2"}
        done = await person.form("/final", **last, rating_document="3", rating_interaction="4")
        assert "C0DE-7" in done.text
        assert (await person.post("/draft", name="document", text="more", version=3)).status_code == 409
        await person.client.aclose()

    with StudyServer(study_file(tmp_path, stub.url, max_minutes=0.04), tmp_path / "data") as server:
        asyncio.run(play())
    ((row,), _) = exported(server)
    assert (row["document"], row["rating_document"], row["turns"]) == ("A text", "3", "1")


def test_when_the_budget_is_used_up_people_are_told_and_go_on_to_rate(stub, tmp_path):
    """A dollar for each word of a reply, of ten at most; a reply has two words."""
    arms = {"arm_one": {"endpoint": {"base_url": stub.url, "model": "one"}, "max_new_tokens": 10}}

    def study(most):
        return study_file(tmp_path, "", arms=arms, budget={"max_usd": most, "prices": {"one": [0, 1e6]}})

    async def play():
        person, late, admin = Caller(server.url), Caller(server.url), Caller(f"{server.url}/admin")
        await person.begin()
        for turn in (1, 2, 3):
            assert (await person.post("/message", turn=turn, text="Hi")).status_code == 200
            name, data = await person.reply(turn)
            assert (name, '"spent": true' in data) == (("done", False) if turn < 3 else ("failed", True))
        page = (await person.get()).text
        assert '<span id="spent">' in page and '<form id="composer" hidden>' in page
        refused = await person.post("/message", turn=3, text="Hi again")
        assert refused.status_code == 409 and "has ended" in refused.json()["error"]
        done = {"document": "A text", "rating_document": "3", "rating_interaction": "4"}
        await person.get("/final")
        page = await late.get()
        assert page.status_code == 503 and "no further participants at present" in page.text
        await admin.get("")
        page = (await admin.form("/login", token=server.token)).text
        assert "4.00 $" in page and "The budget of 13.0 $ is used up: arm_one does not answer any more." in page
        assert "C0DE-7" in (await person.form("/final", **done)).text
        for one in (person, late, admin):
            await one.client.aclose()

    with StudyServer(study(13), tmp_path / "data") as server:
        asyncio.run(play())
    ((row,), _) = exported(server)
    assert (row["document"], row["rating_document"], row["turns"]) == ("A text", "3", "2")
    spent = json.loads((server.folder / "spend.json").read_text())
    assert spent["arm_one"]["usd"] == 4 and spent["arm_one"]["calls"] == 2

    async def go_on():
        person = Caller(server.url)
        await person.begin()
        await person.post("/message", turn=1, text="Hi")
        assert (await person.reply(1))[0] == "done"
        await person.client.aclose()

    with StudyServer(study(14), tmp_path / "data") as server:  # raised
        asyncio.run(go_on())


def test_a_model_without_a_price_is_refused_where_there_is_a_cap(stub, tmp_path, capsys):
    file = study_file(tmp_path, stub.url, budget={"max_usd": 5})
    assert main(["serve", str(file), f"folder={tmp_path / 'data'}", "port=0"]) == 1
    error = capsys.readouterr().err
    assert "arms.arm_one: budget.max_usd is set, and budget.prices has no price for one" in error


async def join(url):
    person = Caller(url)
    await person.begin()
    await person.client.aclose()


def test_a_second_server_and_another_study_in_the_same_folder_are_refused(stub, tmp_path, capsys):
    file = study_file(tmp_path, stub.url)
    typed = ["serve", str(file), f"folder={tmp_path / 'data'}", "port=1"]
    with StudyServer(file, tmp_path / "data") as server:
        assert main(typed) == 1 and "Another process is writing" in capsys.readouterr().err
        assert main([*typed[:2], f"folder={tmp_path / 'other'}", f"port={server.port}"]) == 1
        assert "cannot listen there (Address already in use)" in capsys.readouterr().err
    typed[-1] = "port=0"
    study_file(tmp_path, stub.url, models=("four",))
    assert main(["serve", str(file), f"folder={tmp_path / 'other'}", "port=0"]) == 1
    assert "arms.arm_four: " in (error := capsys.readouterr().err) and "has no model four" in error
    study_file(tmp_path, stub.url)
    assert stat.S_IMODE(os.stat(tmp_path / "other").st_mode) == 0o700
    with StudyServer(file, tmp_path / "other") as server:  # the mistyped model does not stay
        asyncio.run(join(server.url))
    study_file(tmp_path, stub.url, documents=["poem"])
    typed[2] = f"folder={tmp_path / 'other'}"
    assert main(typed) == 1 and "documents differ from when this study began" in capsys.readouterr().err


def test_who_withdraws_is_deleted_while_the_server_runs(served, capsys):
    async def play():
        person = Caller(served.url)
        await person.begin("a secret topic")
        assert main([*typed, "participant=2"]) == 1 and "nobody with this number" in capsys.readouterr().err
        assert main([*typed, "participant=1"]) == 0 and "Deleted: 1 participant" in capsys.readouterr().out
        assert (await person.post("/message", turn=1, text="Hi")).status_code in (401, 403, 409)
        assert "Before you begin" in (await person.get()).text
        await person.client.aclose()

    typed = ["forget", str(served.file), f"folder={served.folder}"]
    asyncio.run(play())
    assert main(["export", *typed[1:]]) == 1 and "nobody" in capsys.readouterr().err.lower()
    assert not any(b"secret topic" in file.read_bytes() for file in served.folder.glob("study.sqlite3*"))


@pytest.mark.slow
def test_two_policies_answer_side_by_side(tiny_model, tmp_path):
    other = tmp_path / "run" / "policy"
    other.parent.mkdir()
    other.symlink_to(tiny_model)

    async def play():
        person = Caller(server.url)
        page = await person.get()
        assert "Before you begin" not in page.text and "tiny_run" in page.text
        assert (await person.post("/message", turn=1, text="Hi")).status_code == 200
        for arm in (0, 1):
            events = await person.client.get("/reply", params={"turn": 1, "arm": arm})
            assert "event: done" in events.text
        assert (await person.get()).text.count('data-state="done"') == 2
        await person.form("/new")
        assert "data-state" not in (await person.get()).text
        rebound = await person.client.get("/", headers={"Host": "evil.example"})
        assert rebound.status_code == 400
        await person.client.aclose()

    named = tmp_path / "tiny_run"
    named.symlink_to(tiny_model)
    command = ["chat", "--web", f"policy={named}", f"beside={other}", "max_new_tokens=8"]
    with StudyServer(tmp_path, tmp_path / "data", command=command) as server:
        asyncio.run(play())


@pytest.mark.slow
def test_fifty_people_at_once_wait_little_and_lose_nothing(stub, served):
    """Each writes four turns, quicker than people do, with drafts between them; p95 of all requests is below 300 ms."""

    async def one(number):
        person = Caller(served.url)
        await asyncio.sleep(number * 0.04)
        await person.begin(f"topic {number}")
        version = 0
        for turn in range(1, 5):
            for part in ("a", "b"):
                saved = await person.post("/draft", name="document", text=f"{number} {turn} {part}", version=version)
                version = saved.json()["version"]
                await asyncio.sleep(0.5)  # the page saves at most so often
            assert (await person.post("/message", turn=turn, text=f"{number} says {turn}")).status_code == 200
            name, data = await person.reply(turn)
            assert name == "done" and f"{number} says {turn}" in data
            if turn % 2 == 0:
                await person.form("/rating", rating=1 + number * turn % 10)
                await person.get()
            await asyncio.sleep(1)
        await person.get("/final")
        done = await person.form(
            "/final",
            document=f"text {number}",
            version_document=version,
            rating_document=1 + number % 10,
            rating_interaction=1 + number * 7 % 10,
        )
        assert "C0DE-7" in done.text
        await person.client.aclose()
        return person.seconds

    async def everybody():
        return await asyncio.gather(*map(one, range(50)))

    taken = asyncio.run(everybody())
    seconds = sorted(value for each in taken for values in each.values() for value in values)
    p95 = seconds[int(len(seconds) * 0.95)]
    print(f"{len(seconds)} requests, p50 {seconds[len(seconds) // 2] * 1000:.0f} ms, p95 {p95 * 1000:.0f} ms")
    assert p95 < 0.3
    rows, folder = exported(served)
    assert len(rows) == 50 and all(row["submitted_at"] for row in rows)
    for row in rows:
        number = row["topic"].removeprefix("topic ")
        assert row["document"] == f"text {number}" and row["rating_document"] == str(1 + int(number) % 10)
    arms = [row["arm"] for row in rows]
    assert max(map(arms.count, set(arms))) - min(map(arms.count, set(arms))) <= 1
    lines = [json.loads(line) for line in (folder / "messages.jsonl").read_text().splitlines()]
    assert len(lines) == 50 * 4 * 2 and all(line["text"] for line in lines)
    statistics = json.loads((folder / "statistics.json").read_text())
    assert all("effects" in model for model in statistics["models"])
