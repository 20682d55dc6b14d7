"use strict";
// The conversation and everything that is saved while it is written. Texts enter the page as text, never as HTML.

const page = document.querySelector("#chat, #final");
const { csrf, person } = page.dataset;
const RETRY = 2000; // milliseconds between attempts while the server does not answer
const byId = (id) => document.getElementById(id);
const say = (text, place = "status") => { const node = byId(place); if (node && node.textContent !== text) node.textContent = text; };

// Posts an object; resolves to {ok, status, body}, or to null if the server does not answer.
async function post(path, body, options = {}) {
  try {
    const response = await fetch(path, {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ csrf, ...body }), ...options,
    });
    return { ok: response.ok, status: response.status, body: await response.json() };
  } catch {
    return null;
  }
}

// --- saving ----------------------------------------------------------------------------------------------------------
// What the server has not taken yet also stands in this tab's storage, in case the page is reloaded before.

class Draft {
  constructor(node) {
    this.node = node;
    this.name = node.dataset.draft;
    this.version = Number(node.dataset.version);
    this.key = `unsaved ${person} ${this.name}`;
    // What the server sent: the person may have typed before this script ran.
    this.saved = node.tagName === "FIELDSET" ? (node.querySelector("input[checked]") || { value: "" }).value : node.defaultValue;
    if (this.text !== this.saved) this.changed(); else this.restore();
    node.addEventListener("input", () => this.changed());
  }
  get text() {
    return this.node.tagName === "FIELDSET" ? (this.node.querySelector("input:checked") || { value: "" }).value : this.node.value;
  }
  set text(text) {
    if (this.node.tagName !== "FIELDSET") this.node.value = text;
    else for (const input of this.node.querySelectorAll("input")) input.checked = input.value === text;
  }
  restore() {
    const unsaved = JSON.parse(sessionStorage.getItem(this.key) || "null");
    if (!unsaved || unsaved.text === this.text) { sessionStorage.removeItem(this.key); return; }
    const take = () => { this.text = unsaved.text; this.changed(); };
    if (unsaved.version === this.version || !this.text) { take(); return; }
    // Another window has saved another text since: the person decides.
    const button = document.createElement("button");
    Object.assign(button, { type: "button", className: "quiet", textContent: "Use what I wrote in this window instead" });
    button.addEventListener("click", () => { take(); button.remove(); });
    this.node.after(button);
  }
  changed() {
    sessionStorage.setItem(this.key, JSON.stringify({ text: this.text, version: this.version }));
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.save(), 400);
  }
  // Saves nothing while the text is sent, since the server empties the field then.
  async hold() {
    this.held = true;
    clearTimeout(this.timer);
    await this.saving;
  }
  release() {
    this.held = false;
    if (this.text !== this.saved) this.changed();
  }
  async save(options) {
    if (this.under_way || this.held) return;
    const text = this.text;
    if (text === this.saved) { this.done(); return; }
    this.under_way = true;
    this.saving = post("/draft", { name: this.name, text, version: this.version }, options);
    const answer = await this.saving;
    this.under_way = false;
    if (answer && answer.ok) {
      this.version = answer.body.version;
      const sent = document.querySelector(`input[name=version_${this.name}]`); // with the final form
      if (sent) sent.value = this.version;
      this.saved = text;
      if (this.text === text) this.done(); else this.changed();
    } else if (!answer || answer.status >= 500 || answer.status === 429) {
      this.problem("Not saved: the server does not answer. Trying again.");
      this.timer = setTimeout(() => this.save(), RETRY);
    } else {
      this.problem(answer.body.error);
    }
  }
  done() {
    sessionStorage.removeItem(this.key);
    if (this.name !== "message") say("Saved", "saved");
    if (this.in_trouble) say("Saved.");
    this.in_trouble = false;
  }
  problem(text) {
    this.in_trouble = true;
    if (this.name !== "message") say("", "saved");
    say(text);
  }
  // The server has emptied the field, because its text was sent.
  emptied(version) {
    clearTimeout(this.timer);
    this.text = this.saved = "";
    this.version = version;
    sessionStorage.removeItem(this.key);
    this.held = false;
  }
}

const drafts = {};
for (const node of document.querySelectorAll("[data-draft]")) drafts[node.dataset.draft] = new Draft(node);
addEventListener("pagehide", () => {
  for (const draft of Object.values(drafts)) if (draft.text !== draft.saved) draft.save({ keepalive: true });
});
addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });

// --- conversation ----------------------------------------------------------------------------------------------------

function conversation() {
  const log = byId("log"), message = byId("message"), send = byId("send"), composer = byId("composer");
  const arms = Number(page.dataset.arms), beside = page.classList.contains("beside");
  const names = JSON.parse(page.dataset.names || '["Assistant"]'); // a study tells no names
  const begin = JSON.parse(page.dataset.progress);
  let turns = begin.turns;
  let waiting = false; // for an answer to the last message

  const element = (tag, className, text) => {
    const node = document.createElement(tag);
    node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const scroll = () => { log.scrollTop = log.scrollHeight; };
  const wait = (on) => { waiting = on; send.setAttribute("aria-disabled", String(on)); };

  function bubble(className, heading, text) {
    const node = element("article", className);
    node.append(element("h2", "", heading), element("div", "words", text));
    return node;
  }

  function add(text, failures) {
    const replies = element("div", "replies");
    for (let arm = 0; arm < arms; arm++) {
      const node = bubble("reply", names[arm], "");
      Object.assign(node.dataset, { turn: turns, arm, failures: failures[arm], state: "open" });
      replies.append(node);
    }
    for (const button of log.querySelectorAll(".reply[data-state=failed] button")) button.remove();
    log.append(bubble("said", "You", text), replies);
    scroll();
    for (const node of replies.children) listen(node);
  }

  function quiet(label, action) {
    const button = element("button", "quiet", label);
    button.type = "button";
    button.addEventListener("click", action);
    return button;
  }

  function copyable(node) {
    const text = node.querySelector(".words").textContent;
    if (beside || !text) return;
    node.append(quiet("Copy into my document", () => {
      const draft = drafts.document;
      draft.text = draft.text.trim() ? `${draft.text.trimEnd()}\n\n${text}` : text;
      draft.changed();
      say("Copied to the end of your document.");
    }));
  }

  function failed(node, full, spent) {
    node.dataset.state = "failed";
    const words = node.querySelector(".words");
    words.textContent = full
      ? "The conversation has become too long for the assistant. You can finish now."
      : "The assistant could not answer. You can try again, change your message, or finish now.";
    if (spent) words.textContent = "The assistant cannot answer any more: the budget of this study is used up. You can finish now.";
    if (beside) words.textContent = full ? "The conversation has become too long. Begin a new one." : "No answer.";
    if (spent || Number(node.dataset.turn) !== turns) { // an earlier message is not answered any more
      if (spent) say("The assistant cannot answer any more.");
      return;
    }
    node.append(quiet("Try again", () => { listen(node); message.focus(); }));
    if (!beside) {
      node.append(quiet("Change my message", () => {
        message.value = node.parentElement.previousElementSibling.querySelector(".words").textContent;
        drafts.message.changed();
        message.focus();
      }));
    }
    say("The assistant could not answer.");
  }

  // Shows the reply of an article while it is written, from wherever it is.
  function listen(node) {
    const { turn, arm, failures } = node.dataset;
    const words = node.querySelector(".words");
    for (const button of node.querySelectorAll("button")) button.remove();
    node.dataset.state = "open";
    node.setAttribute("aria-busy", "true");
    if (Number(failures)) words.textContent = "";
    wait(true);
    say("The assistant is writing.");
    const events = new EventSource(`/reply?turn=${turn}&arm=${arm}&again=${failures}`);
    const show = (text) => {
      const at_end = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
      words.textContent = text;
      if (at_end) scroll();
    };
    const end = (event) => {
      events.close();
      const now = JSON.parse(event.data);
      node.removeAttribute("aria-busy");
      node.dataset.failures = now.failures;
      if (event.type === "done") {
        show(now.text);
        node.dataset.state = "done";
        copyable(node);
        scroll();
        say("The assistant has answered.");
      } else {
        failed(node, now.full, now.spent);
      }
      if (!log.querySelector(".reply[aria-busy]")) wait(false);
      progress(now);
    };
    events.addEventListener("text", (event) => show(JSON.parse(event.data)));
    events.addEventListener("more", (event) => show(words.textContent + JSON.parse(event.data)));
    events.addEventListener("done", end);
    events.addEventListener("failed", end);
    events.addEventListener("error", () => {
      say("The connection was lost. Trying again.");
      if (events.readyState === EventSource.CLOSED) setTimeout(() => listen(node), RETRY);
    });
  }

  function progress(now) {
    if (beside) return;
    const least = Number(page.dataset.min);
    say(now.answered < least ? `Turn ${now.answered} of at least ${least}.` : `${now.answered} turns: you may finish whenever you like.`, "progress");
    composer.hidden = now.rate || now.closed;
    byId("rate").hidden = !now.rate;
    byId("closed").hidden = !now.closed || now.rate;
    byId("spent").hidden = !now.spent;
    byId("finish").hidden = !now.finish || now.rate;
    if (now.rate) {
      say("Please rate the interaction so far.");
      // Not on a number: a person who goes on typing would choose it with Space. Who writes the document stays there.
      if (document.activeElement !== byId("document")) byId("rate").querySelector("fieldset").focus();
      byId("rate").scrollIntoView({ block: "nearest" });
    }
  }

  async function submit(event) {
    event.preventDefault();
    const text = message.value;
    if (waiting || !text.trim()) return;
    wait(true);
    const last = log.querySelector(".replies:last-of-type");
    const again = last && ![...last.children].some((node) => node.dataset.state === "done");
    const turn = again ? turns : turns + 1;
    await drafts.message.hold();
    let answer;
    while (!(answer = await post("/message", { turn, text })) || answer.status >= 500) {
      say("Not sent: the server does not answer. Trying again.");
      await new Promise((resolve) => setTimeout(resolve, RETRY));
    }
    if (!answer.ok) {
      drafts.message.release();
      wait(false);
      say(answer.body.error);
      return;
    }
    if (again) { last.previousElementSibling.remove(); last.remove(); }
    turns = turn;
    drafts.message.emptied(answer.body.version);
    add(text, answer.body.failures);
    message.focus();
  }

  composer.addEventListener("submit", submit);
  message.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); composer.requestSubmit(); }
  });
  for (const node of log.querySelectorAll(".reply")) {
    if (node.dataset.state === "done") copyable(node);
    else if (node.dataset.state === "failed") failed(node, false, begin.spent);
    else listen(node);
  }
  progress(begin);
  if (!beside) clock();
  scroll();
  if (!composer.hidden) message.focus({ preventScroll: true });
}

function clock() {
  const end = Date.now() + 1000 * Number(byId("clock").dataset.seconds);
  let open = end > Date.now();
  const tick = () => {
    const left = Math.max(0, Math.ceil((end - Date.now()) / 1000));
    say(left > 90 ? `${Math.ceil(left / 60)} minutes left` : left > 0 ? `${left} seconds left` : "The time is over", "clock");
    if (open && left === 0) { open = false; location.reload(); }
  };
  tick();
  setInterval(tick, 1000);
}

// The form is sent once nothing is being saved: otherwise it would carry an old version of a text.
async function finish(event) {
  event.preventDefault();
  await Promise.all(Object.values(drafts).map((draft) => draft.hold()));
  event.target.submit();
}

if (byId("chat")) conversation(); else page.addEventListener("submit", finish);
