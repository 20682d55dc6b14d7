"use strict";
// The data (collab/reports/run_data.py): runs, table, curves, weights (of each run: part of R* -> weight), labels (part -> its title), goals, items,
// leftOut (phase -> conversations that are not in the page).
// An item has phase "test" or "validation", user (of evaluation.users, "" is the config's own) and variants (conversations), or phase "train" and context, candidates.
// A conversation: reward (R*), parts, end, messages {role, text, tokens, cut, thought, refused, lengths, logprobs}.
// All text of a run goes into the page as text nodes, never as HTML.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const several = data.runs.length > 1;

/** An element; properties that start with "on" are listeners, null and false children are left out. */
function make(tag, properties, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties || {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && name !== "list") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.flat(9).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const number = (value, digits = 3) => (value === null || value === undefined ? "–" : value.toFixed(digits));
const signed = (value) => (value === null ? "–" : (value > 0 ? "+" : "") + value.toFixed(3));
const plain = (name) => data.labels[name] || name.replaceAll("_", " ");

// --- what an item is worth -----------------------------------------------------------------------------------------

const conversations = (item) => item.variants || item.candidates.flatMap((candidate) => candidate.futures);

/** Mean of a part of R* over conversations; "reward" is R* itself. null if none has it. */
function mean(list, name) {
  const values = list.map((c) => (name === "reward" ? c.reward : c.parts[name])).filter((v) => v !== null && v !== undefined);
  return values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null;
}

const FAILURES = {
  "any failure": (c) => Object.entries(FAILURES).some(([name, test]) => name !== "any failure" && test(c)),
  "invalid": (c) => c.end.startsWith("invalid"),
  "no score": (c) => !c.end.startsWith("invalid") && c.reward === null,
  "user gave up": (c) => c.end === "patience",
  "reply cut": (c) => allMessages(c).some((message) => message.cut),
  "user refused by a guard": (c) => Boolean(c.refused) || allMessages(c).some((message) => message.refused),
};
const allMessages = (c) => (c.reply ? [c.reply, ...c.messages] : c.messages);

/** Candidates by MR, best first; those of one group all have one. */
const ranked = (item) => [...item.candidates].sort((a, b) => b.mr - a.mr);

const METRICS = (() => {
  const parts = new Set(data.items.flatMap((item) => conversations(item).flatMap((c) => Object.keys(c.parts))));
  const found = { "R*": (item) => mean(conversations(item), "reward") };
  found["MR of the best minus the worst"] = (item) => (item.candidates ? ranked(item)[0].mr - ranked(item).at(-1).mr : null);
  found["R* of the last minus the first"] = (item) => {
    const [first, last] = item.variants ? [item.variants[0], item.variants.at(-1)] : [{ reward: null }, { reward: null }];
    return first.reward === null || last.reward === null ? null : last.reward - first.reward;
  };
  for (const part of parts) found[plain(part)] = (item) => mean(conversations(item), part);
  return found;
})();

for (const [index, item] of data.items.entries()) {
  item.index = index;
  for (const candidate of item.candidates || []) for (const future of candidate.futures) Object.assign(future, { reply: candidate.reply, run: item.run });
}

function words(item) {
  if (item.words === undefined) {
    const goal = data.goals[item.goal];
    const texts = [goal.id, goal.prompt || "", goal.reference || "", JSON.stringify(goal.metadata || {})];
    for (const message of item.context || []) texts.push(message.text);
    for (const c of conversations(item)) for (const message of allMessages(c)) texts.push(message.text);
    item.words = texts.join("\n").toLowerCase();
  }
  return item.words;
}

// --- summary and curves --------------------------------------------------------------------------------------------

function summary() {
  const box = byId("summary"), table = data.table;
  for (const run of data.runs) {
    if (!run.finished) box.append(make("p", { className: "warning" }, `${run.label} is not finished: the table has the rows that are.`));
    if (!run.paired) box.append(make("p", { className: "warning" }, `${run.label}: sampler.paired=false, so the candidates of a context faced users of different randomness.`));
  }
  if (several && data.runs[0].seed !== data.runs[1].seed) {
    box.append(make("p", { className: "warning" }, `The runs have different seeds (${data.runs.map((run) => run.seed).join(" and ")}), so their users do not draw the same numbers.`));
  }
  const cells = (row) => row.cells.map((cell) => make("td", { className: cell.sure ? "sure" : "" }, cell.mean, make("small", {}, cell.interval)));
  if (!table.rows.length) box.append(make("p", {}, "No policy has played its test goals yet."));
  else box.append(
    make("div", { className: "scroll" },
      make("table", {},
        make("thead", {}, make("tr", {}, table.columns.map((title) => make("th", { scope: "col" }, title)))),
        make("tbody", {}, table.rows.map((row) => make("tr", { className: row.difference ? "difference" : "" }, make("td", {}, row.label), cells(row)))))),
    make("p", { className: "quiet" }, `Mean over ${table.numGoals} goals (fewer where n is given) with its 95 % bootstrap interval. Differences are paired by goal; bold: the interval does not hold 0.`),
  );
  for (const run of data.runs) {
    const facts = Object.entries(run.facts).map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, String(value))));
    const refused = Object.entries(run.problems).map(([phase, counts]) => `${phase}: ` + (Object.entries(counts).filter(([, n]) => n).map(([kind, n]) => `${plain(kind)} ${n}`).join(", ") || "none"));
    box.append(make("details", { open: !several }, make("summary", {}, several ? run.label : "The run"), make("dl", { className: "facts" }, facts),
      refused.length > 0 && make("p", { className: "quiet" }, "Unusable replies of users and judges: ", refused.join("; "))));
  }
  if (data.differences.length) {
    box.append(make("details", {}, make("summary", {}, `Fields of the config that differ: ${data.differences.length}`), make("ul", {}, data.differences.map((line) => make("li", {}, line.replace(/ there and (.*) here$/, `, then $1`))))));
  }
}

const SVG = "http://www.w3.org/2000/svg";
function draw(tag, attributes, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

/** About `count` round numbers within a range. */
function ticks(low, high, count) {
  const raw = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= raw);
  const found = [];
  for (let tick = Math.ceil(low / step - 1e-9) * step; tick <= high + step * 1e-9; tick += step) found.push(Number(tick.toPrecision(10)));
  return found;
}

function chart(curve) {
  const [width, height, left, bottom, top] = [340, 170, 46, 22, 8];
  const points = curve.lines.flatMap((line) => line.points);
  let [low, high] = [Math.min(...points.map((p) => p[1])), Math.max(...points.map((p) => p[1]))];
  if (low === high) [low, high] = [low - 0.5, high + 0.5];
  const [first, last] = [Math.min(...points.map((p) => p[0])), Math.max(...points.map((p) => p[0]))];
  const x = (step) => left + ((step - first) / (last - first || 1)) * (width - left - 8);
  const y = (value) => height - bottom - ((value - low) / (high - low)) * (height - bottom - top);
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": curve.title });
  for (const tick of ticks(low, high, 4)) {
    svg.append(draw("line", { class: "grid", x1: left, x2: width - 8, y1: y(tick), y2: y(tick) }));
    svg.append(draw("text", { x: left - 5, y: y(tick) + 4, "text-anchor": "end" }, String(tick)));
  }
  for (const tick of ticks(first, last, 6).filter(Number.isInteger)) svg.append(draw("text", { x: x(tick), y: height - 6, "text-anchor": "middle" }, String(tick)));
  for (const line of curve.lines) {
    const tint = several ? line.run : Number(line.split === "val");
    svg.append(draw("polyline", { class: `run${tint} ${line.split}`, points: line.points.map(([step, value]) => `${x(step)},${y(value)}`).join(" ") }));
    if (line.points.length <= 60) {
      for (const [step, value] of line.points) {
        const dot = draw("circle", { class: `run${tint}`, cx: x(step), cy: y(value), r: 2.6 });
        dot.append(draw("title", {}, `${several ? data.runs[line.run].label + ", " : ""}${line.split === "val" ? "validation" : "training"}, step ${step}: ${Number(value.toPrecision(5))}`));
        svg.append(dot);
      }
    }
  }
  return make("figure", {}, make("figcaption", {}, curve.title), svg);
}

function curves() {
  const box = byId("curves");
  if (!data.curves.length) {
    box.append(make("p", { className: "quiet" }, "No curves: nothing was trained in this run."));
    return;
  }
  const entries = data.runs.flatMap((run, index) => ["train", "val"].map((split) => [
    make("span", { className: `key run${several ? index : Number(split === "val")} ${split}` }),
    `${several ? run.label + ", " : ""}${split === "val" ? "validation" : "training"}`]));
  box.append(make("p", { className: "legend" }, entries));
  box.append(make("div", { className: "charts" }, data.curves.filter((curve) => curve.main).map(chart)));
  const rest = data.curves.filter((curve) => !curve.main);
  if (rest.length) {
    const more = make("details", { className: "print-hides" }, make("summary", {}, `${rest.length} more`));
    more.addEventListener("toggle", () => more.childElementCount === 1 && more.append(make("div", { className: "charts" }, rest.map(chart))));
    box.append(more);
  }
}

// --- a conversation ------------------------------------------------------------------------------------------------

let shownWords = "";  // of the search, marked in the texts

/** Text nodes with the words of the search marked. */
function marked(text) {
  if (!shownWords) return [text];
  const found = [], lower = text.toLowerCase();
  let place = 0;
  for (let next = lower.indexOf(shownWords); next >= 0 && lower.length === text.length; next = lower.indexOf(shownWords, place)) {
    found.push(text.slice(place, next), make("mark", {}, text.slice(next, next + shownWords.length)));
    place = next + shownWords.length;
  }
  return [...found, text.slice(place)];
}

/** The tokens of a reply, shaded by how improbable each was. */
function tokensOf(message) {
  const characters = Array.from(message.text);
  let place = 0;
  return message.lengths.map((length, index) => {
    const piece = characters.slice(place, (place += length)).join(""), p = Math.exp(message.logprobs[index]);
    const shade = [0.9, 0.6, 0.35, 0.15, 0.05].filter((bound) => p < bound).length;
    return length > 0 && make("span", { className: `t${shade}`, title: `p = ${p < 0.01 ? p.toExponential(1) : p.toFixed(2)}` }, piece);
  });
}

const REFUSED = (pairs) => byId("guards").checked && pairs && pairs.map(([kind, text]) =>
  make("div", { className: "refused" }, `Refused (${plain(kind)}): `, make("span", { className: "text", dir: "auto" }, text || "no reply")));

function messageBox(message, more = "") {
  if (message.role === "system") {
    return make("details", {}, make("summary", { className: "quiet" }, "Instruction of the policy"), make("div", { className: "message" }, make("span", { className: "text", dir: "auto" }, marked(message.text))));
  }
  const shaded = byId("tokens").checked && message.lengths;
  const notes = [message.role === "user" ? "user" : "policy", message.tokens !== undefined && `${message.tokens} tokens`, message.cut && "cut at its limit"].filter(Boolean);
  return make("div", { className: `message ${message.role} ${more}` }, REFUSED(message.refused), make("span", { className: "who" }, notes.join(" · ")),
    message.thought && make("details", {}, make("summary", { className: "quiet" }, "Thought"), make("span", { className: "text", dir: "auto" }, marked(message.thought))),
    make("span", { className: "text", dir: "auto" }, shaded ? tokensOf(message) : message.text ? marked(message.text) : make("i", {}, "empty")));
}

const ENDS = { satisfied: "the user is satisfied", patience: "the user gave up", max_turns: "the last turn", window: "the window is over" };

function endOf(c) {
  const bad = c.end.startsWith("invalid") || c.end === "patience" || c.reward === null;
  const refused = [...allMessages(c), c].reduce((count, { refused }) => count + (refused || []).length, 0);
  return make("div", { className: "chips" }, make("span", { className: `chip ${bad ? "bad" : ""}` }, `ended: ${ENDS[c.end] || c.end}`),
    make("span", { className: "chip" }, `R* ${number(c.reward)}`),
    refused > 0 && make("span", { className: "chip bad" }, `${refused} messages of the user refused by guards`), c.user && make("span", { className: "chip" }, `user: ${c.user}`));
}

function judgeOf(c) {
  if (!c.judge) return null;
  return make("details", {}, make("summary", { className: "quiet" }, "What the judge said"), Object.entries(c.judge).map(([name, replies]) =>
    [make("h4", {}, plain(name)), replies.map((reply) => make("div", { className: "message" }, make("span", { className: "text", dir: "auto" }, reply)))]));
}

const conversationBox = (c, messages) => [(messages || c.messages).map((message) => messageBox(message)), REFUSED(c.refused), endOf(c), judgeOf(c)];

// --- why one earned more -------------------------------------------------------------------------------------------

/** The weight of a part of R* in the run of these conversations. */
const weightOf = (list, part) => data.weights[list[0].run][part] ?? 0;

/** What a part adds to R*: its mean times its weight. null if it has a weight and no value. */
function share(list, part) {
  const weight = weightOf(list, part), value = mean(list, part);
  return weight && value === null ? null : weight * value;
}

/** Parts of R* on the left and on the right, and what each difference adds to R*; the largest are highlighted. */
function partsTable(left, right, names, total, sign) {
  const parts = [...new Set([...left, ...right].flatMap((c) => Object.keys(c.parts)))];
  const rows = parts.map((part) => {
    const [one, other] = [share(left, part), share(right, part)];
    const weights = [...new Set([weightOf(left, part), weightOf(right, part)])];
    return { part, a: mean(left, part), b: mean(right, part), weight: weights.some(Boolean) && weights.join(" and "), gain: one === null || other === null ? null : sign * (one - other) };
  });
  const size = (row) => Math.abs(row.gain ?? 0);
  rows.sort((x, y) => size(y) - size(x));
  const largest = Math.max(...rows.map((row) => Math.abs(row.gain ?? 0)));
  const [a, b] = [mean(left, "reward"), mean(right, "reward")];
  const difference = sign > 0 ? "left minus right, weighted" : "right minus left, weighted";
  return make("div", { className: "scroll" }, make("table", { className: "parts" },
    make("thead", {}, make("tr", {}, ["part of R*", "weight", ...names, difference].map((title) => make("th", { scope: "col" }, title)))),
    make("tbody", {}, rows.map((row) => {
      const much = row.gain !== null && Math.abs(row.gain) > 1e-9 && Math.abs(row.gain) >= largest / 2;
      return make("tr", { className: much ? "much" : row.weight ? "" : "none" }, make("td", {}, plain(row.part)),
        make("td", {}, row.weight || "measured only"), make("td", {}, number(row.a)), make("td", {}, number(row.b)),
        make("td", { className: row.gain > 0 ? "up" : row.gain < 0 ? "down" : "" }, row.weight ? signed(row.gain) : ""));
    })),
    make("tfoot", {}, make("tr", {}, make("td", {}, total), make("td", {}), make("td", {}, number(a)), make("td", {}, number(b)),
      make("td", {}, a === null || b === null ? "–" : signed(sign * (a - b)))))));
}

/** One sentence: which part decided. */
function reason(one, other, first, second) {
  const [a, b] = [mean(one, "reward"), mean(other, "reward")];
  if (a === null || b === null) return "A side has no R*.";
  if (Math.abs(a - b) < 1e-9) return "Both earned the same.";
  const gains = Object.keys(data.labels).map((part) => {
    const [x, y] = [share(one, part), share(other, part)];
    return [part, x === null || y === null ? 0 : x - y];
  }).filter(([, gain]) => gain * (a - b) > 0).sort((x, y) => Math.abs(y[1]) - Math.abs(x[1]));
  const told = gains.slice(0, 2).map(([part, gain]) => `${plain(part)} (${signed(gain)})`).join(" and ");
  return `${a > b ? first : second} earned ${Math.abs(a - b).toFixed(3)} more${told ? `, most of all by ${told}` : ""}.`;
}

// --- the open item -------------------------------------------------------------------------------------------------

function goalBox(item) {
  const goal = data.goals[item.goal], metadata = goal.metadata || {};
  const list = (title, lines) => lines.length > 0 && [make("h4", {}, title), make("ul", {}, lines.map((line) => make("li", { dir: "auto" }, marked(line))))];
  const agenda = metadata.agenda || {};
  return make("aside", { className: "goal" }, make("h3", {}, "The user's hidden goal"), make("p", { className: "quiet" }, "The policy does not see it."),
    make("p", {}, make("b", {}, goal.id)),
    goal.prompt === undefined ? make("p", { className: "quiet" }, "This run has not written its goals.") : [
      make("h4", {}, "What the user wants"), make("span", { className: "text", dir: "auto" }, marked(goal.prompt)),
      list("What the user knows", metadata.notes || []),
      list("What the user says only when asked", (agenda.items || []).map((entry) => `${entry.kind}: ${entry.text}`)),
      list("Preferences", Object.entries(metadata.preferences || {}).map(([name, value]) => `${plain(name)}: ${value}`)),
      make("h4", {}, "What would satisfy the user"), make("span", { className: "text", dir: "auto" }, marked(goal.reference))]);
}

/** The random key of the user's draws: equal keys draw equal numbers. */
function keyOf(item, run, sample) {
  const split = { test: "test", validation: "val" }[item.phase] || `train/${item.number}`;
  const round = item.phase === "train" ? `, round=${item.step - 1}` : "";
  return `seed=${run.seed}, split="${split}"${round}, goal="${data.goals[item.goal].id}", sample=${sample}`;
}

function sideBox(c, title, chips, className, messages) {
  return make("div", { className: `side ${className}` }, title, make("div", { className: "chips" }, chips), conversationBox(c, messages));
}

function showGoal(item) {
  const names = item.variants.map((variant) => variant.name);
  // At first the baseline against the last policy, or the last policy of one run against that of the other.
  const last = names.length - 1, baseline = item.variants.findIndex((v) => v.name.split("@")[0] === data.runs[v.run].baseline);
  const left = several && item.phase === "test" ? item.variants.findLastIndex((v) => v.run === 0) : baseline;
  const [one, other] = [item.variants[item.first ?? Math.max(0, left)], item.variants[item.second ?? last]];
  const choose = (which, chosen) => make("select", { ariaLabel: which === "first" ? "left" : "right", onchange: (event) => { item[which] = Number(event.target.value); open(item, false); } },
    names.map((name, index) => make("option", { value: index, selected: item.variants[index] === chosen }, name)));
  const better = one.reward !== null && other.reward !== null && one.reward !== other.reward ? (other.reward > one.reward ? other : one) : null;
  const side = (c, which) => sideBox(c, make("h4", {}, choose(which, c), make("span", { className: "print-only" }, c.name)), [make("span", { className: `chip ${c === better ? "good" : better ? "bad" : ""}` }, `R* ${number(c.reward)}`)], c === better ? "wins" : better ? "loses" : "");
  const same = data.runs[one.run].seed === data.runs[other.run].seed;
  const where = item.phase === "test" ? "Test" : "Validation";
  return [make("h3", {}, `${where}: ${data.goals[item.goal].id}${item.user ? `, user ${item.user}` : ""}${item.sample ? `, conversation ${item.sample + 1}` : ""}`),
    make("p", { className: "quiet" }, same ? "Same goal, same randomness of the user: " : "Same goal, but users of different randomness: ", make("code", {}, keyOf(item, data.runs[one.run], item.sample))),
    make("div", { className: "with-goal" }, make("div", {},
      one !== other && [make("p", {}, reason([other], [one], other.name, one.name)), partsTable([one], [other], [one.name, other.name], "R*", -1)],
      make("h4", {}, "Side by side"),
      make("div", { className: "sides" }, side(one, "first"), one !== other && side(other, "second"))), goalBox(item))];
}

function candidateChips(candidate, best, worst) {
  return [make("span", { className: `chip ${candidate === best ? "good" : candidate === worst ? "bad" : ""}` }, `MR ${number(candidate.mr)}`),
    make("span", { className: "chip" }, candidate.advantage === null ? "no advantage" : `advantage ${signed(candidate.advantage)}`),
    make("span", { className: "chip" }, candidate.trained ? "trained on" : "compared only")];
}

function showGroup(item) {
  const order = ranked(item), [best, worst] = [order[0], order.at(-1)];
  const label = (candidate) => `Candidate ${item.candidates.indexOf(candidate) + 1}`;
  const sample = Math.min(item.shown ?? 0, Math.min(best.futures.length, worst.futures.length) - 1);
  const [low, high] = [worst.mr, best.mr];
  const side = (candidate, title, className) => sideBox(candidate.futures[sample], make("h4", {}, `${title}: ${label(candidate).toLowerCase()}`), candidateChips(candidate, best, worst), className,
    [{ ...candidate.reply, first: true }, ...candidate.futures[sample].messages]);
  const futures = best.futures.length > 1 && make("label", { className: "quiet print-hides" }, "future ", make("select", { onchange: (event) => { item.shown = Number(event.target.value); open(item, false); } },
    best.futures.map((_, index) => make("option", { value: index, selected: index === sample }, String(index + 1)))));
  const branch = (candidate) => make("details", { className: "branch" },
    make("summary", {}, make("b", {}, label(candidate)), " ", make("meter", { min: Math.min(low, 0), max: Math.max(high, 0) || 1, value: candidate.mr, title: "MR" }),
      make("div", { className: "chips" }, candidateChips(candidate, best, worst)), make("span", { className: "text", dir: "auto" }, marked(candidate.reply.text))),
    candidate.futures.map((future, index) => make("details", { className: "branch" },
      make("summary", {}, make("b", {}, `Future ${index + 1}`), ` R* ${number(future.reward)} `,
        make("span", { className: "quiet" }, Object.entries(future.parts).map(([part, value]) => `${plain(part)} ${number(value)}`).join(" · "))),
      messageBox(candidate.reply, "candidate"), conversationBox(future))));
  const run = data.runs[item.run];
  return [make("h3", {}, `Step ${item.step}: ${data.goals[item.goal].id}, context at turn ${item.turn}`),
    make("p", { className: "quiet" }, run.paired ? "All candidates face the same randomness of the user in the same future: " : "Randomness of the user without the candidate: ",
      make("code", {}, keyOf(item, run, sample))),
    make("div", { className: "with-goal" }, make("div", {},
      make("h4", {}, "Context"), item.context.map((message) => messageBox(message)),
      best !== worst && [make("h4", {}, "Why one earned more ", futures), make("p", {}, reason(best.futures, worst.futures, label(best), label(worst))),
        partsTable(best.futures, worst.futures, [`${label(best)} (best)`, `${label(worst)} (worst)`], "MR", 1),
        make("div", { className: "sides" }, side(best, "Best", "wins"), side(worst, "Worst", "loses"))],
      make("h4", {}, `All ${item.candidates.length} candidates, best first`), order.map(branch)), goalBox(item))];
}

// --- list and filters ----------------------------------------------------------------------------------------------

const PAGE = 300;  // entries of the list that are made at once
let filtered = [], current = null, made = 0;

function entry(item) {
  const value = METRICS[byId("metric").value](item);
  const where = item.candidates ? `Step ${item.step} · turn ${item.turn} · ${item.candidates.length} candidates` : `${item.phase}${item.user ? ` · user ${item.user}` : ""} · ${item.variants.length} conversations${item.sample ? ` · no. ${item.sample + 1}` : ""}`;
  const bad = conversations(item).filter(FAILURES["any failure"]).length;
  return make("button", { type: "button", "data-index": item.index, onclick: () => open(item) },
    make("span", {}, several && item.phase !== "test" ? `${data.runs[item.run].label}: ` : "", data.goals[item.goal].id),
    make("span", { className: "quiet" }, where), make("span", { className: "quiet" }, `${byId("metric").value} ${number(value)}${bad ? ` · ${bad} with a failure` : ""}`));
}

function listMore() {
  const list = byId("list"), next = filtered.slice(made, made + PAGE);
  list.querySelector(".more")?.remove();
  list.append(...next.map(entry));
  made += next.length;
  if (made < filtered.length) list.append(make("button", { type: "button", className: "more", onclick: listMore }, `${filtered.length - made} more`));
}

function apply() {
  const value = (id) => byId(id).value, low = parseFloat(value("low")), high = parseFloat(value("high"));
  shownWords = value("search").trim().toLowerCase();
  const metric = METRICS[value("metric")];
  filtered = data.items.filter((item) => {
    if (value("phase") && item.phase !== value("phase")) return false;
    if (value("goal") && data.goals[item.goal].id !== value("goal")) return false;
    if (value("step") && !(item.step === Number(value("step")) || item.variants?.some((v) => v.name === `step ${value("step")}`))) return false;
    if (value("run") && (item.variants ? !item.variants.some((v) => v.run === Number(value("run"))) : item.run !== Number(value("run")))) return false;
    if (value("failure") && !conversations(item).some(FAILURES[value("failure")])) return false;
    if (!Number.isNaN(low) || !Number.isNaN(high)) {
      const found = metric(item);
      if (found === null || found < low || found > high) return false;
    }
    return !shownWords || words(item).includes(shownWords);
  });
  if (value("order")) {
    const sign = value("order") === "up" ? 1 : -1, worth = new Map(filtered.map((item) => [item, metric(item)]));
    filtered.sort((a, b) => (worth.get(a) === null) - (worth.get(b) === null) || sign * (worth.get(a) - worth.get(b)));
  }
  const count = filtered.reduce((sum, item) => sum + conversations(item).length, 0);
  const phases = { test: "the test", validation: "validations", train: "training steps" };
  const further = Object.entries(data.leftOut).map(([phase, n]) => `${n} of ${phases[phase]}`).join(", ");
  const left = further && ` Further conversations are only in transcripts.jsonl, since the page would be too large: ${further}.`;
  byId("count").textContent = `${filtered.length} of ${data.items.length} entries, ${count} conversations.${left}`;
  byId("list").replaceChildren();
  made = 0;
  listMore();
  if (!filtered.length) byId("list").append(make("p", {}, "Nothing fits these filters."));
  if (!filtered.includes(current)) current = filtered[0] || null;
  open(current, false);
}

function open(item, scroll = true) {
  current = item;
  for (const button of byId("list").querySelectorAll("[aria-current]")) button.removeAttribute("aria-current");
  const button = item && byId("list").querySelector(`[data-index="${item.index}"]`);
  button?.setAttribute("aria-current", "true");
  if (scroll) button?.scrollIntoView({ block: "nearest" });
  const children = item ? (item.candidates ? showGroup(item) : showGoal(item)) : [];
  byId("detail").replaceChildren(...children.flat(9).filter(Boolean));
}

function move(by) {
  const place = Math.max(0, Math.min(filtered.length - 1, filtered.indexOf(current) + by));
  while (place >= made && made < filtered.length) listMore();
  if (filtered[place]) open(filtered[place]);
}

function filters() {
  const fill = (id, options) => byId(id).append(...options.map(([value, title]) => make("option", { value }, title)));
  const any = [["", "all"]], same = (values) => [...new Set(values)].map((value) => [value, String(value)]);
  fill("phase", [...any, ...same(data.items.map((item) => item.phase))]);
  fill("goal", [...any, ...same(data.items.map((item) => data.goals[item.goal].id))]);
  const steps = data.items.flatMap((item) => (item.candidates ? [item.step] : item.phase === "validation" ? item.variants.map((v) => Number(v.name.slice(5))) : []));
  fill("step", [...any, ...same(steps.sort((a, b) => a - b))]);
  fill("run", [...any, ...data.runs.map((run, index) => [index, run.label])]);
  byId("run-label").hidden = !several;
  fill("failure", [["", "with and without"], ...same(Object.keys(FAILURES))]);
  fill("metric", same(Object.keys(METRICS)));
  fill("order", [["", "as played"], ["down", "highest first"], ["up", "lowest first"]]);
  const form = byId("filters");
  let waiting;
  form.addEventListener("input", (event) => {
    clearTimeout(waiting);
    if (event.target.type === "search") waiting = setTimeout(apply, 150);
    else apply();
  });
  form.addEventListener("reset", () => setTimeout(apply));
  form.addEventListener("submit", (event) => event.preventDefault());
}

// --- keys, theme, print --------------------------------------------------------------------------------------------

const KEYS = [
  ["/", "search", () => byId("search").focus()],
  ["j", "next entry", () => move(1)],
  ["k", "previous entry", () => move(-1)],
  ["e", "open or close all branches", () => {
    const branches = [...byId("detail").querySelectorAll("details")], open = !branches.every((branch) => branch.open);
    for (const branch of branches) branch.open = open;
  }],
  ["t", "token probabilities", () => { byId("tokens").click(); }],
  ["g", "what guards refused", () => { byId("guards").click(); }],
  ["d", "light, dark, or as the system", () => byId("theme").click()],
  ["?", "these keys", () => byId("help").showModal()],
];

function keys() {
  byId("help").append(make("h3", { id: "help-title" }, "Keys"), make("table", {}, KEYS.map(([key, what]) => make("tr", {}, make("td", {}, make("kbd", {}, key)), make("td", {}, what)))),
    make("p", { className: "quiet" }, "Esc leaves the search and closes this."), make("form", { method: "dialog" }, make("button", {}, "Close")));
  byId("help-button").addEventListener("click", () => byId("help").showModal());
  document.addEventListener("keydown", (event) => {
    const field = event.target.closest?.("input, select, textarea, dialog");
    if (event.key === "Escape" && field?.tagName === "INPUT") field.blur();
    if ((field && field.type !== "checkbox") || event.ctrlKey || event.metaKey || event.altKey) return;
    const found = KEYS.find(([key]) => key === event.key);
    if (found) {
      event.preventDefault();
      found[2]();
    }
  });
}

function theme() {
  const names = ["system", "light", "dark"], button = byId("theme");
  let chosen = 0;
  const show = () => {
    if (chosen) document.documentElement.dataset.theme = names[chosen];
    else delete document.documentElement.dataset.theme;
    button.textContent = `Theme: ${names[chosen]}`;
  };
  button.addEventListener("click", () => { chosen = (chosen + 1) % 3; show(); });
  show();
}

function printing() {
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not(.print-hides):not([open])")];
    for (const branch of closed) branch.open = true;
  });
  addEventListener("afterprint", () => { for (const branch of closed) branch.open = false; });
  byId("print").addEventListener("click", () => window.print());
}

byId("title").textContent = data.title;
byId("subtitle").textContent = data.runs.map((run) => `${run.facts.task}, ${run.facts.model}, ${run.facts.algorithm || run.facts.command}, seed ${run.seed}, ${run.facts.started}`).join("  |  ");
summary();
curves();
filters();
keys();
theme();
printing();
apply();
