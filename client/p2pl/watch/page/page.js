// The page: takes events in, keeps what is chosen, and draws what can be seen.

import * as figures from "./figures.js";
import { Figure, bytes, count, duration, element, figure, onNight, shown } from "./draw.js";
import { Runs, together } from "./runs.js";

const DRAW_MS = 40; // between the end of a drawing and the next one, at least
const SUMS_MS = 500; // between two drawings of figures that sum up a whole run, at least
const KINDS = ["hello", "peers", "waiting", "run", "cut", "rounds", "messages"];
const STATES = {
  running: "is running", finished: "has finished", interrupted: "was interrupted; the same command resumes it",
  stopped: "has stopped, or its process cannot be seen from here", waiting: "is waited for",
};
const SHOWN_MESSAGES = 200;

const at = (id) => document.getElementById(id);
const runs = new Runs();
const chosen = { session: null, peer: null, round: null };
let connection = "connecting";
let isPlanned = false;
let nextMs = 0; // when it may be drawn again

const all = [
  new Figure("score", "Score by round", figures.score),
  new Figure("loss", "Loss by round", figures.loss),
  new Figure("pace", "Seconds by round", figures.pace),
  new Figure("row", "Whom it trusts", figures.row),
  new Figure("graph", "Who trusts whom", figures.graph),
  new Figure("matrix", "Weights", figures.matrix),
  new Figure("bytes", "Bytes by peer", figures.traffic),
  new Figure("seconds", "Seconds by peer", figures.seconds),
  new Figure("present", "Peers that were there", figures.present),
  new Figure("epsilon", "Epsilon by round", figures.epsilon),
];
const sums = new Set(["pace", "bytes", "seconds", "present"]);

// --- what is chosen -----------------------------------------------------------------------------

function view() {
  const sessions = runs.sessions;
  const session = sessions.includes(chosen.session) ? chosen.session : sessions.find((one) => one) ?? sessions[0];
  const list = runs.in(session);
  const mine = list.find((run) => run.number === chosen.peer) || list.find((run) => !run.about.alone) || list[0];
  const most = Math.max(0, ...list.map((run) => (run.last ? run.last.round : 0)));
  const isNewest = at("newest").checked || chosen.round === null;
  const byThemselves = list.filter((run) => run.about.alone && run !== mine);
  const same = byThemselves.filter((run) => mine && run.about.peer === mine.about.peer);
  return { runs, session, list, mine, alone: same.length ? same : byThemselves.slice(0, 1), most,
    round: isNewest ? (mine && mine.last ? mine.last.round : most) : Math.min(chosen.round, Math.max(1, most)) };
}

function options(select, wanted, value) {
  const key = JSON.stringify(wanted);
  if (select.dataset.key !== key) {
    select.dataset.key = key;
    select.replaceChildren(...wanted.map(([of, text]) => element("option", { value: of }, text)));
  }
  if (select.value !== String(value)) select.value = String(value);
}

// --- the head -----------------------------------------------------------------------------------

function drawHead(seen) {
  const { mine, list } = seen;
  const sessions = runs.sessions;
  at("session-choice").hidden = sessions.length < 2;
  options(at("session"), sessions.map((session) => {
    const [first] = runs.in(session);
    return [session, `${first.about.name || "not begun"} · ${(session || "").slice(0, 8)} (${count(runs.in(session).length, "run", "runs")})`];
  }), seen.session);
  at("peer-choice").hidden = list.length < 2;
  options(at("peer"), list.map((run) => [run.number, run.about.attack ? `${run.name} (lies: ${run.about.attack})` : run.name]), mine ? mine.number : "");
  const name = mine && (mine.about.name || mine.about.label);
  at("title").textContent = name || "Waiting for a run";
  const of = mine && mine.about.rounds;
  document.title = mine && mine.last ? `${name}: round ${mine.last.round}${of ? ` of ${of}` : ""} · p2pl` : "p2pl watch";
  const state = mine ? mine.about.state : "waiting";
  const key = `${connection} ${state} ${mine && mine.number}`;
  if (at("status").dataset.key !== key) { // said anew only when it is another: it is read aloud
    at("status").dataset.key = key;
    const what = mine ? [element("b", {}, mine.name), ` ${STATES[state] || state}`] : ["Nothing to show yet"];
    const lost = connection === "lost" ? " · this page has lost p2pl watch, and tries again" : "";
    at("status").replaceChildren(element("span", { class: `dot ${state}`, "aria-hidden": "true" }), ...what, lost);
  }
  const notices = [
    ...runs.waiting.map((path) => `Waiting for ${path}: nothing is there yet.`),
    ...runs.all.filter((run) => run.about.trouble).map((run) => `${run.about.label}: ${run.about.trouble}`),
  ];
  if (at("notices").dataset.key !== JSON.stringify(notices)) {
    at("notices").dataset.key = JSON.stringify(notices);
    at("notices").replaceChildren(...notices.map((text) => element("p", { class: "notice" }, text)));
  }
}

function tile(name, value, more, extra) {
  return element("div", {}, element("dt", {}, name), element("dd", {}, value), element("dd", {}, more || "", extra || ""));
}

function drawTiles({ mine, list, alone }) {
  const last = mine && mine.last;
  if (!last) {
    at("tiles").replaceChildren(tile("Round", "–", "no round is over yet"));
    return;
  }
  const { about, metric } = mine;
  const made = [];
  const left = Math.max(0, (about.rounds || last.round) - last.round);
  const some = mine.rounds.slice(-10);
  const pace = some.reduce((sum, one) => sum + (one.seconds || 0), 0) / some.length;
  const bar = about.rounds ? element("progress", { max: about.rounds, value: last.round, "aria-label": "Rounds done" }) : null;
  const ahead = left && about.state === "running" ? `about ${duration(left * pace)} left` : `${duration(pace)} a round`;
  made.push(tile("Round", about.rounds ? `${last.round} of ${about.rounds}` : `${last.round}`, ahead, bar));
  const scores = mine.rounds.map((one) => one.score).filter((one) => one !== undefined);
  const best = scores.length ? (metric.higher ? Math.max(...scores) : Math.min(...scores)) : null;
  made.push(tile(metric.title, shown(metric, last.score), `best so far ${shown(metric, best)}`));
  const beside = alone.find((one) => one.last && one.last.score !== undefined);
  if (beside) made.push(tile(`${metric.title} alone`, shown(metric, beside.last.score), `round ${beside.last.round}`));
  const flat = last.trust || [];
  let others = 0;
  for (let place = 0; place < flat.length; place += 2) others += flat[place] !== about.peer && flat[place + 1] > 0 ? 1 : 0;
  const bad = (last.rejected || []).length;
  if (!about.alone) made.push(tile("Trusts", count(others, "peer", "peers"), bad ? `${bad} turned down this round` : "nobody turned down this round"));
  const [came, went] = ["in", "out"].map((key) => mine.rounds.reduce((sum, one) => sum + (one[key] || 0), 0));
  if (!about.alone) made.push(tile("Received", bytes(came), `${bytes(went)} sent`));
  if (last.epsilon !== undefined) made.push(tile("Epsilon", figure(last.epsilon), about.budget ? `of ${figure(about.budget)}` : "spent"));
  if (together(list).length > 1) {
    const running = list.filter((run) => run.about.state === "running").length;
    made.push(tile("Runs here", `${list.length}`, `${running} running`));
  }
  at("tiles").replaceChildren(...made);
}

// --- the rest -----------------------------------------------------------------------------------

function drawSlider({ most, round, mine }) {
  const slider = at("round");
  const first = mine && mine.rounds.length ? Math.min(mine.rounds[0].round, most) : 1;
  slider.min = first;
  slider.max = Math.max(first, most);
  slider.disabled = most <= first;
  if (at("newest").checked || document.activeElement !== slider) slider.value = round;
  at("round-said").textContent = most ? `${round} of ${most}` : "–";
  slider.setAttribute("aria-valuetext", `round ${round} of ${most}`);
}

function drawRejections(seen) {
  const rows = figures.rejections(seen);
  const key = JSON.stringify([seen.round, rows]);
  if (at("rejected").dataset.key === key) return;
  at("rejected").dataset.key = key;
  at("rejected-said").textContent = `By ${seen.mine.name}, up to round ${seen.round}; the newest first.`;
  if (!rows.length) {
    at("rejected").replaceChildren(element("p", { class: "empty" }, "Nobody has been turned down."));
    return;
  }
  const heads = [["peer"], ["why"], ["last in round", "number"], ["rounds so far", "number"]];
  const body = rows.map((one) => element("tr", {}, element("th", { scope: "row" }, one.peer),
    element("td", {}, one.what === "turned down" ? one.why : `Left alone for now. ${one.why}`,
      one.raw === one.why ? "" : element("span", { class: "raw" }, `in the log: ${one.raw}`)),
    element("td", { class: "number" }, String(one.round)), element("td", { class: "number" }, String(one.times))));
  at("rejected").replaceChildren(element("table", {},
    element("thead", {}, element("tr", {}, ...heads.map(([name, kind]) => element("th", { scope: "col", class: kind }, name)))),
    element("tbody", {}, ...body)));
}

function drawPrivacy({ mine }) {
  const spent = mine && mine.last && mine.last.epsilon;
  const isPrivate = spent !== undefined && spent !== null && spent !== false;
  at("privacy").hidden = at("privacy-link").hidden = !isPrivate;
  if (!isPrivate) return;
  const { budget, delta } = mine.about;
  const key = `${spent} ${budget} ${delta}`;
  if (at("gauge").dataset.key === key) return;
  at("gauge").dataset.key = key;
  const share = budget ? spent / budget : 0;
  const meter = budget ? element("meter", { min: 0, max: budget, value: Math.min(spent, budget), high: 0.9 * budget, "aria-label": `Epsilon spent: ${figure(spent)} of ${figure(budget)}` }) : null;
  at("gauge").replaceChildren(element("p", {}, element("strong", {}, `Epsilon ${figure(spent)}`), budget ? ` of ${figure(budget)}, ${Math.round(100 * share)} % of the budget` : ", without a budget that is known here"), meter ?? "",
    element("p", { class: "summary" }, `This bounds what everything that this peer sends says about any one of its examples${delta ? `, but for a chance of ${delta.toExponential(0)}` : ""}. When the budget is spent, training stops.`));
}

function drawMessages({ mine }) {
  const said = mine ? mine.messages : [];
  const key = `${mine && mine.number} ${said.length}`;
  if (at("said").dataset.key === key) return;
  at("said").dataset.key = key;
  if (!said.length) {
    at("said").replaceChildren(element("p", { class: "empty" }, "Nothing was said yet."));
    return;
  }
  const items = said.slice(-SHOWN_MESSAGES).reverse().map((one) => {
    const when = new Date(1000 * one.time);
    return element("li", {}, element("time", { datetime: when.toISOString() }, when.toLocaleTimeString()), element("span", {}, one.text));
  });
  at("said").replaceChildren(element("ol", {}, ...items));
}

function draw() {
  isPlanned = false;
  const begunMs = performance.now();
  const isAllDrawn = drawAll();
  const endMs = performance.now();
  nextMs = endMs + Math.max(DRAW_MS, (endMs - begunMs) / 3); // a slow machine must take events in too
  if (!isAllDrawn) plan(false);
}

/** Draws what has changed and is seen; returns whether nothing of it was left for a later time. */
function drawAll() {
  const seen = view();
  drawHead(seen);
  drawTiles(seen);
  if (!seen.mine) return true;
  drawSlider(seen);
  drawRejections(seen);
  drawPrivacy(seen);
  drawMessages(seen);
  const nowMs = performance.now();
  const stale = all.filter((one) => one.isSeen && one.isStale);
  const due = stale.filter((one) => !sums.has(one.frame.id) || nowMs >= (one.shownMs ?? -SUMS_MS) + SUMS_MS);
  for (const one of due) {
    one.shownMs = nowMs;
    one.show(seen);
  }
  at("churn").hidden = at("churn-link").hidden = !seen.mine.rounds.some((one) => one.joined || one.left);
  document.documentElement.dataset.rounds = String(runs.all.reduce((sum, run) => sum + run.rounds.length, 0));
  return due.length === stale.length;
}

/** Draws soon, everything that has changed at once, and no more often than a person can see. */
function plan(isNew = true) {
  if (isNew) for (const one of all) one.isStale = true;
  if (isPlanned) return;
  isPlanned = true;
  setTimeout(() => requestAnimationFrame(draw), Math.max(0, nextMs - performance.now()));
}

// --- wiring -------------------------------------------------------------------------------------

const seeing = new IntersectionObserver((changes) => {
  for (const change of changes) {
    const one = all.find((each) => each.frame === change.target);
    one.isSeen = change.isIntersecting;
  }
  plan(false);
}, { rootMargin: "150px" });
for (const one of all) seeing.observe(one.frame);

at("session").addEventListener("change", (event) => {
  chosen.session = event.target.value;
  chosen.peer = null;
  plan();
});
at("peer").addEventListener("change", (event) => {
  chosen.peer = Number(event.target.value);
  plan();
});
at("round").addEventListener("input", (event) => {
  chosen.round = Number(event.target.value);
  at("newest").checked = false;
  plan();
});
at("newest").addEventListener("change", () => plan());
onNight(() => plan());

const source = new EventSource("events");
for (const kind of KINDS) {
  source.addEventListener(kind, (event) => {
    if (kind === "hello") connection = "here";
    runs.take(kind, JSON.parse(event.data));
    plan();
  });
}
source.addEventListener("error", () => {
  connection = "lost";
  plan(false);
});
