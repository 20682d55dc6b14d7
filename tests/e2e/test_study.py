"""A user study in a real browser: `collab study serve` in a process of its own, a stub of models on loopback."""

import json

import pytest
from fault_server import FaultServer
from study import Person, StudyServer, browser, chromium, exported, study_file

pytest.importorskip("playwright", reason="playwright is not installed (extra dev)")
NEEDS_CHROMIUM = pytest.mark.skipif(chromium() is None, reason="there is no chromium; Debian: apt-get install chromium")
MODELS = ("one", "two", "three")


def answer_to(text):
    return f"This is the answer to: {text} Then a few more words follow."


def say(call):
    return answer_to(call["messages"][-1]["content"])


@pytest.fixture(scope="module")
def opened():
    with browser() as one:
        yield one


@pytest.fixture
def stub():
    """A server of three models whose replies can be broken by setting `fault`."""
    with FaultServer(models=MODELS, say=say, word_seconds=0.01, plan=lambda n, call: server.fault) as server:
        server.fault = "ok"
        yield server


@pytest.fixture
def served(stub, tmp_path):
    with StudyServer(study_file(tmp_path, stub.url, min_turns=4, rate_every=2), tmp_path / "data") as server:
        yield server


@NEEDS_CHROMIUM
def test_nothing_is_lost_by_reloads_the_back_button_and_a_killed_server(opened, stub, served):
    person = Person(opened, f"{served.url}/?PROLIFIC_PID=p-17")
    person.begin()
    page = person.page
    stub.word_seconds = 0.2
    person.send("First <b>bold</b> & message")
    page.get_by_text("This is the").wait_for()
    page.reload()  # in the middle of the reply
    person.answered(1)
    assert person.messages() == [
        "First <b>bold</b> & message",
        say({"messages": [{"content": "First <b>bold</b> & message"}]}),
    ]
    assert len(stub.calls) == 1  # the reply went on, and was not asked for twice

    page.fill("#document", "A draft")
    page.fill("#message", "half a mess")
    page.reload()  # before it is saved
    assert (page.input_value("#document"), page.input_value("#message")) == ("A draft", "half a mess")
    page.go_back()
    page.goto(served.url)
    assert (page.input_value("#document"), page.input_value("#message")) == ("A draft", "half a mess")

    person.send("Second message")
    page.get_by_text("Second message Then").wait_for()
    served.kill()  # in the middle of the reply
    page.fill("#document", "A draft, longer")
    person.says("The connection was lost. Trying again.")
    served.start()
    person.answered(2)
    person.says("Please rate the interaction so far.")
    page.get_by_text("Saved", exact=True).first.wait_for()
    page.reload()
    assert person.messages()[2:] == ["Second message", answer_to("Second message")]
    assert page.input_value("#document") == "A draft, longer"

    stub.word_seconds = 0
    person.rate(9)
    for turn in (3, 4):
        person.send(f"Message {turn}")
        person.answered(turn)
    person.rate(4)
    page.click("#finish a")
    page.check("input[name=rating_document][value='8']")
    page.fill("#strengths", "=quick")
    page.wait_for_timeout(700)
    page.reload()
    assert page.is_checked("input[name=rating_document][value='8']")
    assert page.input_value("#strengths") == "=quick"
    page.get_by_role("button", name="Finish").click()  # the browser refuses, one rating is missing
    stale = person.tab()
    stale.goto(f"{served.url}/final")
    page.fill("#weaknesses", "slow")
    page.get_by_text("Saved", exact=True).wait_for()
    stale.check("input[name=rating_interaction][value='1']")
    stale.get_by_role("button", name="Finish").click()
    stale.get_by_text("Your texts were changed in another window.").wait_for()
    assert stale.input_value("#weaknesses") == "slow"
    stale.close()
    page.fill("#weaknesses", "rather slow")  # sent before it is saved
    page.check("input[name=rating_interaction][value='7']")
    page.get_by_role("button", name="Finish").click()
    person.says("C0DE-7")
    page.go_back()
    page.reload()
    person.says("C0DE-7")
    assert not person.errors

    (row,), folder = exported(served)
    assert row["external_id"] == "p-17" and row["turns"] == "4"
    assert (row["rating_document"], row["rating_interaction"]) == ("8", "7")
    assert row["weaknesses"] == "rather slow"
    assert (row["document"], row["strengths"]) == ("A draft, longer", "'=quick")  # no formula for a spreadsheet
    ratings = [json.loads(line) for line in (folder / "ratings.jsonl").read_text().splitlines()]
    assert [(r["turn"], r["scale"], r["rating"]) for r in ratings if not r["final"]] == [
        (2, "interaction", 9),
        (4, "interaction", 4),
    ]
    log = served.log.read_text()
    assert "p-17" not in log and served.token not in log and "127.0.0.1:" in log


@NEEDS_CHROMIUM
@pytest.mark.slow
def test_three_people_get_three_arms_and_see_no_names(opened, stub, served):
    people = [Person(opened, served.url) for _ in range(3)]
    for person in people:
        person.begin()
        person.send("Hello")
    for person in people:
        person.answered(1)
        html = person.page.content() + person.page.evaluate("JSON.stringify(document.cookie)")
        assert not [name for model in MODELS for name in (f"arm_{model}", f'"{model}"') if name in html]
    assert sorted(call["model"] for call in stub.calls) == sorted(MODELS)
    # Nobody sees another's conversation.
    people[0].send("a secret")
    people[0].answered(2)
    assert "a secret" not in people[1].page.content()
    people[1].page.reload()
    assert "a secret" not in people[1].page.content()


@NEEDS_CHROMIUM
@pytest.mark.slow
def test_two_tabs_of_one_person_do_not_overwrite_each_other(opened, stub, served):
    person = Person(opened, served.url)
    person.begin()
    stub.word_seconds = 0.1
    first, second = person.page, person.tab()
    person.send("From the first tab")
    second.fill("#message", "From the second tab")
    second.press("#message", "Enter")
    second.get_by_text("Reload the page.").wait_for()
    second.reload()
    second.locator(".reply[data-state=done]").wait_for()
    assert second.locator("#log .words").first.inner_text() == "From the first tab"
    assert second.input_value("#message") == "From the second tab"
    first.fill("#document", "Text of the first tab")
    first.get_by_text("Saved", exact=True).wait_for()
    second.fill("#document", "Text of the second tab")
    second.get_by_text("This text was changed in another window.").wait_for()
    second.reload()
    assert second.input_value("#document") == "Text of the first tab"
    second.click("text=Use what I wrote in this window instead")
    second.get_by_text("Saved", exact=True).wait_for()
    first.reload()
    assert first.input_value("#document") == "Text of the second tab"
    assert len(stub.calls) == 1 and not person.errors


@NEEDS_CHROMIUM
@pytest.mark.slow
def test_a_message_is_not_saved_as_a_draft_while_it_is_sent(opened, stub, served):
    person = Person(opened, served.url)
    person.begin()
    page, drafts = person.page, []
    page.on("request", lambda request: drafts.append(request.post_data) if request.url.endswith("/draft") else None)

    def late(route):
        page.wait_for_timeout(1000)
        route.continue_()

    page.route("**/message", late)
    person.send("A message")
    person.answered(1)
    assert not drafts and page.input_value("#message") == "" and not person.errors
    page.fill("#message", "the next")  # drafts are saved again
    page.wait_for_timeout(1000)
    page.evaluate("sessionStorage.clear()")
    page.reload()
    assert page.input_value("#message") == "the next" and len(drafts) == 1


@NEEDS_CHROMIUM
@pytest.mark.slow
@pytest.mark.parametrize("fault", ["500", "401", "drop", "hang", "empty choices"])
def test_a_model_that_fails_is_told_and_one_goes_on(opened, stub, served, fault):
    person = Person(opened, served.url)
    person.begin()
    stub.fault = fault
    person.send("Will you answer?")
    person.page.get_by_role("button", name="Try again").wait_for(timeout=40_000)
    person.says("The assistant could not answer. You can try again")
    person.page.reload()
    person.says("The assistant could not answer. You can try again")
    stub.fault = "ok"
    if fault == "401":
        person.page.get_by_role("button", name="Change my message").click()
        person.page.fill("#message", "Another message")
        person.page.press("#message", "Enter")
        person.answered(1)
        assert person.messages()[0] == "Another message" and len(person.messages()) == 2
    elif fault == "drop":
        person.page.click("text=I am done")
        person.says("Final questions")
    else:
        person.page.get_by_role("button", name="Try again").click()
        person.answered(1)
    log = served.log.read_text()
    assert "a reply failed (ChatFailed" in log and "Will you" not in log
    assert f"HTTP {fault}" in log or not fault.isdecimal()
    assert not person.errors


@NEEDS_CHROMIUM
@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 1280])
def test_every_page_suits_screen_readers_keyboard_and_phones(opened, stub, served, width):
    from axe_playwright_python.sync_playwright import Axe

    axe, person = Axe(), Person(opened, served.url, viewport={"width": width, "height": 740}, bypass_csp=True)
    page, keys = person.page, person.page.keyboard

    def check(where):
        found = axe.run(page)
        assert found.violations_count == 0, f"{where}: {found.generate_report()}"
        assert page.evaluate("document.documentElement.scrollWidth") <= width, where

    def tab_to(selector):
        for _ in range(60):
            keys.press("Tab")
            if page.evaluate("s => document.activeElement.matches(s)", selector):
                return
        raise AssertionError(f"Tab does not reach {selector}")

    check("consent")
    tab_to("input[name=agree]")
    keys.press("Space")
    tab_to("button")
    keys.press("Enter")
    page.wait_for_selector("#topic")
    check("topic")
    tab_to("#topic")
    keys.type("A party")
    tab_to("button")
    keys.press("Enter")
    page.wait_for_selector("#progress:not(:empty)")
    check("conversation")
    for turn in range(1, 5):
        keys.type(f"Message {turn}")  # the focus is on the message
        keys.press("Enter")
        person.answered(turn)
        if turn % 2 == 0:
            page.wait_for_selector("#rate:not([hidden])")
            check("rating")
            keys.type("so far ")  # the person still types
            assert page.locator("#rate input:checked").count() == 0
            tab_to("#rate input")
            keys.press("ArrowRight")
            tab_to("#rate button")
            with page.expect_navigation():
                keys.press("Enter")
    check("conversation with replies")
    tab_to(".reply button")
    keys.press("Enter")
    assert "This is the answer" in page.input_value("#document")
    tab_to("#finish a")
    keys.press("Enter")
    page.wait_for_load_state()
    page.wait_for_selector("#strengths")
    check("final")
    for name in ("rating_document", "rating_interaction"):
        tab_to(f"input[name={name}]")
        keys.press("Space")
    tab_to("form button")
    keys.press("Enter")
    person.says("C0DE-7")
    check("done")
    page.goto(f"{served.url}/admin")
    check("login")
    page.fill("#token", served.token)
    page.press("#token", "Enter")
    page.wait_for_selector("table")
    check("admin")
    assert not person.errors


@NEEDS_CHROMIUM
@pytest.mark.slow
def test_the_admin_page_shows_progress_live_behind_its_token(opened, stub, served):
    admin = Person(opened, f"{served.url}/admin")
    admin.page.fill("#token", "a guess")
    admin.page.press("#token", "Enter")
    admin.says("This is not the token.")
    assert admin.page.request.get(f"{served.url}/admin/table").status == 403
    admin.page.fill("#token", served.token)
    admin.page.press("#token", "Enter")
    admin.page.wait_for_selector("table")
    row = admin.page.locator("tbody tr").last.locator("td")
    assert row.all_inner_texts()[:3] == ["0", "0", "0"]
    empty = admin.page.request.get(f"{served.url}/admin/data.zip")
    assert empty.status == 409 and "Nobody has taken part yet" in empty.text()
    person = Person(opened, served.url)
    person.begin()
    person.send("Hello")
    person.answered(1)
    admin.page.locator("tbody tr:last-child td:nth-child(6) >> text=1.0").wait_for()
    assert row.all_inner_texts()[:3] == ["1", "1", "0"]
    archive = admin.page.request.get(f"{served.url}/admin/data.zip")
    assert archive.status == 200 and archive.body().startswith(b"PK")
