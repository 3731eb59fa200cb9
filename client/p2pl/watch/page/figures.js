// What each figure shows of the view: {runs, list, mine, alone, round}.
// `list` are the runs of the chosen session, `mine` is the chosen one, `alone` those that trained by
// themselves, `round` is the one of the slider.

import { ROUNDS, bytes, categories, count, duration, figure, look, names, plain, roomFor, short, shown, span } from "./draw.js";
import { together } from "./runs.js";

const MAX_LINES = 6; // of other peers, each a line of its own; more are drawn as a band
const MAX_NAMED = 14; // peers whose names stand in the graph
const EDGES_OF_MANY = 3; // that are drawn of each peer where there are many
const MAX_BACK = 20; // rounds in which two peers last met, for the graph and the matrix
const MAX_MAP_ROUNDS = 400; // columns of a map: of longer runs the newest ones

const rounds = (run) => run.rounds.map((one) => one.round);
const values = (run, key) => run.rounds.map((one) => one[key] ?? null);
const hasAny = (run, key) => run.rounds.some((one) => one[key] !== undefined);

function line(run, key, name, style, unit = "") {
  return { type: "scatter", mode: run.rounds.length < 2 ? "markers" : "lines", x: rounds(run), y: values(run, key),
    name: plain(name), line: style, marker: { color: style.color }, connectgaps: true,
    hovertemplate: `${plain(name)}<br>round %{x}: %{y:.4g} ${plain(unit)}<extra></extra>` };
}

/** The least, the middle and the most of other runs, round by round. */
function spread(runs, key) {
  const by = new Map();
  for (const run of runs) {
    for (const one of run.rounds) {
      if (one[key] === undefined) continue;
      if (!by.has(one.round)) by.set(one.round, []);
      by.get(one.round).push(one[key]);
    }
  }
  const at = [...by.keys()].sort((a, b) => a - b);
  const sorted = at.map((round) => by.get(round).sort((a, b) => a - b));
  return { at, low: sorted.map((all) => all[0]), high: sorted.map((all) => all[all.length - 1]),
    middle: sorted.map((all) => all[Math.floor(all.length / 2)]) };
}

/** Lines of the other peers, or a band of them, with what to say in the legend. */
function others(view, key, unit) {
  const colours = look();
  const rest = together(view.list).filter((run) => run !== view.mine && hasAny(run, key));
  if (!rest.length) return { traces: [], legend: [] };
  if (rest.length <= MAX_LINES) {
    const used = rest.map((run, at) => [run, colours.palette[1 + at % (colours.palette.length - 1)]]);
    return {
      traces: used.map(([run, color]) => line(run, key, run.name, { color, width: 1.6 }, unit)),
      legend: used.map(([run, color]) => ["thin", color, run.name]),
    };
  }
  const { at, low, middle, high } = spread(rest, key);
  const edge = { color: "rgba(0,0,0,0)", width: 0 };
  return {
    traces: [
      { type: "scatter", mode: "lines", x: at, y: low, line: edge, hoverinfo: "skip" },
      { type: "scatter", mode: "lines", x: at, y: high, line: edge, fill: "tonexty", fillcolor: `${colours.palette[4]}38`,
        hoverinfo: "skip" },
      { type: "scatter", mode: "lines", x: at, y: middle, line: { color: colours.palette[4], width: 1.6 },
        hovertemplate: "middle of the others<br>round %{x}: %{y:.4g}<extra></extra>" },
    ],
    legend: [["area", `${colours.palette[4]}60`, `from the worst to the best of ${rest.length} others`],
      ["thin", colours.palette[4], "the middle of them"]],
  };
}

const label = (view) => view.mine.name;

export function score(view) {
  const { mine, alone } = view;
  const metric = mine.metric;
  const colours = look();
  const unit = metric.unit;
  const traces = [];
  const legend = [];
  const around = others(view, "score", unit);
  traces.push(...around.traces);
  if (!mine.about.alone && hasAny(mine, "before")) {
    traces.push(line(mine, "before", "before mixing", { color: colours.soft, width: 1.5, dash: "dot" }, unit));
    legend.push(["dot", colours.soft, "before mixing with the others"]);
  }
  for (const run of alone) {
    traces.push(line(run, "score", "alone", { color: colours.warn, width: 2, dash: "dash" }, unit));
    legend.push(["dash", colours.warn, `without the others: ${run.name}`]);
  }
  if (hasAny(mine, "personal")) {
    traces.push(line(mine, "personal", "personal model", { color: colours.good, width: 2 }, unit));
    legend.push(["thin", colours.good, "personal model, on labels like its own"]);
  }
  traces.push(line(mine, "score", label(view), { color: colours.accent, width: 3 }, unit));
  const first = ["line", colours.accent, `${label(view)}, after mixing`];
  const last = mine.last;
  const beside = alone.find((one) => one.last && one.last.score !== undefined);
  let said = last ? `${metric.title} ${shown(metric, last.score)} after round ${last.round}` : "No round is over yet";
  if (last && beside) {
    const gain = (metric.higher ? 1 : -1) * ((last.score ?? 0) - beside.last.score);
    said += `; ${shown(metric, beside.last.score)} alone, so the others ${gain >= 0 ? "add" : "cost"} ${metric.unit === "%" ? `${Math.abs(gain).toFixed(1)} points` : shown(metric, Math.abs(gain))}`;
  }
  said += metric.higher ? ". Higher is better." : ". Lower is better.";
  return {
    caption: `${metric.title} by round`, said, traces, legend: [first, ...legend, ...around.legend],
    layout: { xaxis: ROUNDS, yaxis: { title: { text: plain(metric.axis), standoff: 8 } } },
    table: () => ({
      caption: `${metric.axis} by round`,
      columns: [["round", true], ["after mixing", true], ["before mixing", true]],
      rows: mine.rounds.map((one) => [one.round, shown(metric, one.score), shown(metric, one.before)]),
    }),
  };
}

export function loss(view) {
  const { mine } = view;
  const colours = look();
  const unit = mine.about.loss_unit || "";
  const kinds = [["loss", "training", { color: colours.palette[1], width: 2 }, "thin"],
    ["validation", "validation, after mixing", { color: colours.accent, width: 3 }, "line"]].filter(([key]) => hasAny(mine, key));
  if (!kinds.length) return null;
  const last = mine.last;
  const parts = kinds.map(([key, name]) => `${name} ${figure(last[key])}`);
  return {
    said: `Loss after round ${last.round}: ${parts.join(", ")}${unit && ` ${unit}`}. Lower is better.`,
    legend: kinds.map(([, name, style, kind]) => [kind, style.color, name]),
    traces: kinds.map(([key, name, style]) => line(mine, key, name, style, unit)),
    layout: { xaxis: ROUNDS, yaxis: { title: { text: plain(unit ? `loss (${unit})` : "loss"), standoff: 8 }, rangemode: "tozero" } },
    table: () => ({
      caption: "Loss by round", columns: [["round", true], ["training", true], ["validation", true]],
      rows: mine.rounds.map((one) => [one.round, figure(one.loss), figure(one.validation)]),
    }),
  };
}

export function pace(view) {
  const { mine } = view;
  if (!mine.rounds.length) return null;
  const colours = look();
  const spent = mine.rounds.reduce((sum, one) => sum + (one.seconds || 0), 0);
  return {
    said: `${count(mine.rounds.length, "round", "rounds")} in ${duration(spent)}, ${duration(spent / mine.rounds.length)} each on average; the last one took ${duration(mine.last.seconds)}.`,
    traces: [{ type: "scatter", mode: "lines", fill: "tozeroy", x: rounds(mine), y: values(mine, "seconds"), line: { color: colours.accent, width: 2, shape: "hvh" },
      fillcolor: `${colours.accent}30`, hovertemplate: "round %{x}: %{y:.3g} s<extra></extra>" }],
    layout: { xaxis: ROUNDS, yaxis: { title: { text: "seconds", standoff: 8 }, rangemode: "tozero" } },
    table: () => ({ caption: "Seconds by round", columns: [["round", true], ["seconds", true]],
      rows: mine.rounds.map((one) => [one.round, figure(one.seconds)]) }),
  };
}

// --- trust --------------------------------------------------------------------------------------

function weightsOf(entry) {
  const row = new Map();
  const flat = (entry && entry.trust) || [];
  for (let at = 0; at < flat.length; at += 2) row.set(flat[at], flat[at + 1]);
  return row;
}

/** Peers of a run in the order of a person: itself, those with runs here, then the others. */
function columnsOf(view, met) {
  const own = view.mine.about.peer;
  const known = together(view.list).map((run) => run.about.peer).filter((peer) => peer !== undefined);
  const first = known.filter((peer) => met.has(peer));
  const rest = [...met].filter((peer) => !known.includes(peer)).sort((a, b) => a - b);
  return own !== undefined && !known.includes(own) && met.has(own) ? [own, ...first, ...rest.filter((one) => one !== own)] : [...first, ...rest];
}

function called(view, peer) {
  const name = view.runs.nameOf(peer, view.list);
  return peer === view.mine.about.peer ? `${name} (self)` : name;
}

export function row(view) {
  const { mine } = view;
  const shownRounds = mine.rounds.filter((one) => one.round > mine.last.round - MAX_MAP_ROUNDS);
  const met = new Set();
  for (const one of shownRounds) {
    for (let at = 0; at < (one.trust || []).length; at += 2) met.add(one.trust[at]);
    for (const [peer] of one.rejected || []) met.add(peer);
  }
  if (!met.size) return null;
  const peers = columnsOf(view, met);
  const place = new Map(peers.map((peer, at) => [peer, at]));
  const begin = shownRounds[0].round;
  const columns = mine.last.round - begin + 1; // one may be missing in the log
  const blank = () => peers.map(() => new Array(columns).fill(null));
  const weights = blank();
  const rejected = blank();
  shownRounds.forEach((one) => {
    const column = one.round - begin;
    for (let at = 0; at < (one.trust || []).length; at += 2) weights[place.get(one.trust[at])][column] = one.trust[at + 1];
    for (const [peer] of one.rejected || []) rejected[place.get(peer)][column] = 1;
  });
  const colours = look();
  const labels = peers.map((peer) => called(view, peer));
  const rows = categories(labels);
  const last = mine.last;
  const lastRow = weightsOf(last);
  const trusted = [...lastRow].filter(([peer, weight]) => weight > 0 && peer !== mine.about.peer).length;
  const bad = (last.rejected || []).length;
  return {
    caption: `Whom ${label(view)} trusts, by round`,
    said: `In round ${last.round} it gave weight to ${count(trusted, "other peer", "other peers")}, and turned down ${bad || "nobody"}. Each row is a peer, each column a round.`,
    legend: mapLegend(view),
    cells: { weights, rejected, most: heaviest(view), where: (at, column) => `${labels[at]}, round ${begin + column}` },
    layout: { xaxis: { ...ROUNDS, range: span(columns, begin), showgrid: false, automargin: false },
      yaxis: { ...names(rows), range: span(rows.length).reverse(), showgrid: false },
      margin: { l: roomFor(labels), b: 38 }, plot_bgcolor: colours.empty },
    table: () => ({
      caption: "Weight by round and peer", columns: [["round", true], ...labels.map((name) => [name, true])],
      rows: shownRounds.map((one) => [one.round, ...peers.map((_, at) => {
        const column = one.round - begin;
        return rejected[at][column] ? "turned down" : weights[at][column] === null ? "–" : figure(weights[at][column]);
      })]),
    }),
  };
}

/** What a run made of each other peer when the two last met, up to a round: {peer: [weight, is turned down]}. */
function lastMet(run, round) {
  const found = new Map();
  const newest = run.upTo(round);
  if (!newest) return found;
  let at = run.rounds.indexOf(newest);
  for (let back = 0; at >= 0 && back < MAX_BACK; at -= 1, back += 1) {
    const entry = run.rounds[at];
    for (const [peer] of entry.rejected || []) if (!found.has(peer)) found.set(peer, [0, true]);
    const flat = entry.trust || [];
    for (let place = 0; place < flat.length; place += 2) {
      if (!found.has(flat[place])) found.set(flat[place], [flat[place + 1], false]);
    }
  }
  return found;
}

const meetings = new WeakMap(); // of a view: two figures show the same

/** The peers up to a round, and what each of those whose run is here made of the others. */
function meeting(view) {
  if (!meetings.has(view)) meetings.set(view, meetingOf(view));
  return meetings.get(view);
}

function meetingOf(view) {
  const told = together(view.list).filter((run) => run.about.peer !== undefined)
    .map((run) => [run, lastMet(run, view.round)]).filter(([, row]) => row.size);
  const met = new Set(told.map(([run]) => run.about.peer));
  for (const [, row] of told) for (const peer of row.keys()) met.add(peer);
  return { told, peers: columnsOf(view, met) };
}

const WHEN = `each as it was when the two last met, in the ${MAX_BACK} rounds before`;

export function matrix(view) {
  const { told, peers } = meeting(view);
  if (!told.length || peers.length < 2) return null;
  const place = new Map(peers.map((peer, at) => [peer, at]));
  const weights = told.map(() => new Array(peers.length).fill(null));
  const rejected = told.map(() => new Array(peers.length).fill(null));
  told.forEach(([, row], from) => {
    for (const [peer, [weight, isTurned]] of row) {
      weights[from][place.get(peer)] = weight;
      if (isTurned) rejected[from][place.get(peer)] = 1;
    }
  });
  const colours = look();
  const across = peers.map((peer) => nameOf(view, peer));
  const down = told.map(([run]) => nameOf(view, run.about.peer));
  const [columns, rows] = [categories(across), categories(down)];
  const turned = rejected.flat().filter((cell) => cell !== null).length;
  const isOne = told.length === 1;
  return {
    caption: `Weights up to round ${view.round}`,
    said: `${isOne ? "One row: this page knows what one peer gives" : `Row by row, what ${told.length} peers give to those of the columns`}, ${WHEN}. ${turned ? `${count(turned, "cell is a model that was", "cells are models that were")} turned down.` : "Nobody was turned down."}`,
    legend: mapLegend(view),
    cells: { weights, rejected, most: heaviest(view), where: (at, column) => `${down[at]} gives ${across[column]}` },
    layout: { xaxis: { ...names(columns), range: span(columns.length), showgrid: false, tickangle: -45, title: { text: "gets", standoff: 4 } },
      yaxis: { ...names(rows), range: span(rows.length).reverse(), showgrid: false, title: { text: "gives", standoff: 4 } },
      margin: { l: 20 + roomFor(down), b: 20 + 0.75 * roomFor(across) }, plot_bgcolor: colours.empty },
    table: () => ({
      caption: `Weights up to round ${view.round}`, columns: [["gives", false], ...across.map((name) => [name, true])],
      rows: down.map((name, from) => [name, ...peers.map((_, at) =>
        (rejected[from][at] ? "turned down" : weights[from][at] === null ? "–" : figure(weights[from][at])))]),
    }),
  };
}

function mapLegend(view) {
  const colours = look();
  return [["scale", colours.scale, `weight, from 0 to ${figure(heaviest(view))}`], ["area", colours.warn, "turned down"],
    ["area", colours.empty, "not met"]];
}

/** The largest weight of all rounds: one scale for all pictures, so that they can be compared. */
function heaviest(view) {
  return Math.max(0.01, ...view.list.filter((run) => !run.about.alone).map((run) => run.heaviest));
}

function nameOf(view, peer) {
  return view.runs.nameOf(peer, view.list);
}

/** Lines from peer to peer, each of which ends a little before the peer it leads to; one shape is drawn
 * five times as fast as a trace with gaps. */
function edges(list, where, line, opacity) {
  const path = list.map(([from, to]) => {
    const [[x0, y0], [x1, y1]] = [where.get(from), where.get(to)];
    return `M${x0.toFixed(4)},${y0.toFixed(4)}L${(x0 + 0.93 * (x1 - x0)).toFixed(4)},${(y0 + 0.93 * (y1 - y0)).toFixed(4)}`;
  });
  return path.length ? [{ type: "path", layer: "below", path: path.join(""), line, opacity }] : [];
}

export function graph(view) {
  const { told, peers } = meeting(view);
  if (!told.length || peers.length < 2) return null;
  const colours = look();
  const where = new Map(peers.map((peer, at) => {
    const turn = Math.PI / 2 - (2 * Math.PI * at) / peers.length;
    return [peer, [Math.cos(turn), Math.sin(turn)]];
  }));
  const isMany = peers.length > MAX_NAMED;
  const kept = [];
  const turned = [];
  const got = new Map();
  for (const [run, found] of told) {
    const from = run.about.peer;
    const row = [...found].map(([peer, [weight]]) => [peer, weight]).filter(([peer, weight]) => peer !== from && weight > 0);
    for (const [peer, weight] of row) got.set(peer, (got.get(peer) || 0) + weight);
    const drawn = isMany ? row.sort((a, b) => b[1] - a[1]).slice(0, EDGES_OF_MANY) : row;
    kept.push(...drawn.map(([to, weight]) => [from, to, weight]));
    turned.push(...[...found].filter(([, [, isTurned]]) => isTurned).map(([to]) => [from, to]));
  }
  const most = Math.max(1e-9, ...kept.map(([, , weight]) => weight));
  const classes = [[0, 0.25, 0.8], [0.25, 0.5, 1.6], [0.5, 0.75, 2.6], [0.75, 1.01, 4]];
  const shapes = classes.flatMap(([low, high, width]) => edges(
    kept.filter(([, , weight]) => weight / most >= low && weight / most < high), where,
    { color: colours.accent, width }, isMany ? 0.45 : 0.75));
  shapes.push(...edges(isMany ? turned.slice(0, 400) : turned, where, { color: colours.warn, width: 1.4, dash: "dash" }, isMany ? 0.35 : 0.9));
  const liars = new Map(view.list.filter((run) => run.about.attack).map((run) => [run.about.peer, run.about.attack]));
  const lost = new Set(turned.map(([, to]) => to));
  const share = (peer) => (got.get(peer) || 0) / Math.max(1, told.length - 1);
  const of = (peer) => where.get(peer);
  const traces = [{
    type: "scatter", mode: isMany ? "markers" : "markers+text", cliponaxis: false,
    x: peers.map((peer) => of(peer)[0]), y: peers.map((peer) => of(peer)[1]),
    text: peers.map((peer) => plain(short(nameOf(view, peer), 12))), textfont: { color: colours.ink },
    textposition: peers.map((peer) => (Math.abs(of(peer)[0]) < 0.3 ? (of(peer)[1] > 0 ? "top center" : "bottom center")
      : of(peer)[0] > 0 ? "middle right" : "middle left")),
    marker: {
      size: peers.map((peer) => (isMany ? 6 : 10) + 26 * Math.min(1, share(peer) * (isMany ? 3 : 1.5))),
      color: peers.map((peer) => (lost.has(peer) ? colours.warn : colours.accent)),
      symbol: peers.map((peer) => (liars.has(peer) ? "x" : peer === view.mine.about.peer ? "diamond" : "circle")),
      line: { color: colours.card, width: 1.5 },
    },
    customdata: peers.map((peer) => `${plain(nameOf(view, peer))}<br>gets ${figure(share(peer))} of the others’ mixes on average${liars.has(peer) ? `<br>lies on purpose: ${plain(liars.get(peer))}` : ""}`),
    hovertemplate: "%{customdata}<extra></extra>",
  }];
  const axis = { visible: false, range: isMany ? [-1.15, 1.15] : [-1.55, 1.55] };
  return {
    caption: `Who trusts whom up to round ${view.round}`,
    said: `${count(peers.length, "peer", "peers")}; ${lost.size ? `${lost.size} of them ${lost.size === 1 ? "was" : "were"} turned down by somebody` : "nobody is turned down"}, ${WHEN}.${isMany ? ` Of each peer its ${EDGES_OF_MANY} heaviest weights are drawn.` : ""}`,
    legend: [["line", colours.accent, "gives weight: the thicker, the more"], ["dash", colours.warn, "turned down"],
      ["diamond", colours.accent, label(view)], ...(liars.size ? [["cross", colours.soft, `lies on purpose (${[...new Set(liars.values())].join(", ")})`]] : [])],
    traces,
    layout: { shapes, xaxis: axis, yaxis: { ...axis, range: [-1.25, 1.25] }, margin: { l: 8, r: 8, t: 18, b: 18 } },
    table: () => ({
      caption: `What each peer gets up to round ${view.round}`,
      columns: [["peer", false], ["mean weight that others give it", true], ["turned down by", true]],
      rows: peers.map((peer) => [nameOf(view, peer), figure(share(peer)), turned.filter(([, to]) => to === peer).length]),
    }),
  };
}

/** Whom a run has turned down or left alone up to a round: the last time, how often, and why. */
export function rejections({ mine, round, runs, list }) {
  const found = new Map();
  for (const entry of mine.rounds) {
    if (entry.round > round) break;
    for (const [what, several] of [["turned down", entry.rejected], ["left alone for now", entry.resting]]) {
      for (const [peer, [why, raw]] of several || []) {
        const before = found.get(peer);
        found.set(peer, { peer: runs.nameOf(peer, list), what, why, raw, round: entry.round, times: 1 + (before ? before.times : 0) });
      }
    }
  }
  return [...found.values()].sort((a, b) => b.round - a.round || b.times - a.times);
}

// --- traffic ------------------------------------------------------------------------------------

/** Bytes that went between a run and each other peer, or what each run moved in all. */
function moved(view) {
  const both = new Map();
  for (const one of view.mine.rounds) {
    for (const [peer, [came, went]] of one.bytes || []) {
      const sum = both.get(peer) || [0, 0];
      both.set(peer, [sum[0] + came, sum[1] + went]);
    }
  }
  if (both.size) {
    return { of: "with", rows: [...both].map(([peer, sums]) => [view.runs.nameOf(peer, view.list), ...sums]) };
  }
  const rows = together(view.list).map((run) => [run.name,
    run.rounds.reduce((sum, one) => sum + (one.in || 0), 0), run.rounds.reduce((sum, one) => sum + (one.out || 0), 0)]);
  return { of: "by", rows: rows.filter(([, came, went]) => came || went) };
}

function bars(rows, unit, kinds, colours) {
  return kinds.map(([name, at], number) => ({
    type: "bar", orientation: "h", y: categories(rows.map((one) => one[0])), x: rows.map((one) => one[at]), name,
    marker: { color: [colours.accent, colours.palette[1]][number] },
    customdata: rows.map((one) => [plain(one[0]), unit(one[at])]),
    hovertemplate: `%{customdata[0]}<br>${name} %{customdata[1]}<extra></extra>`,
  }));
}

const MAX_BARS = 20;

export function traffic(view) {
  const { of, rows } = moved(view);
  if (!rows.length) return null;
  const colours = look();
  const most = [...rows].sort((a, b) => b[1] + b[2] - a[1] - a[2]).slice(0, MAX_BARS);
  const [came, went] = [1, 2].map((at) => rows.reduce((sum, one) => sum + one[at], 0));
  const relayed = view.mine.rounds.reduce((sum, one) => sum + (one.relayed || 0), 0);
  return {
    caption: of === "with" ? `Bytes between ${label(view)} and each peer` : "Bytes by peer",
    said: `${bytes(came)} received and ${bytes(went)} sent so far${relayed ? `, ${bytes(relayed)} of them by relays` : ""}.${rows.length > most.length ? ` The ${most.length} with the most are drawn, of ${rows.length}.` : ""}`,
    legend: [["area", colours.accent, "received"], ["area", colours.palette[1], "sent"]],
    traces: bars(most, bytes, [["received", 1], ["sent", 2]], colours),
    layout: { barmode: "group", bargap: 0.25, xaxis: { title: { text: "bytes", standoff: 6 }, rangemode: "tozero", tickformat: "~s" },
      yaxis: { ...names(categories(most.map((one) => one[0]))), autorange: "reversed", showgrid: false, ticks: "" },
      margin: { l: roomFor(most.map((one) => one[0])) } },
    table: () => ({ caption: "Bytes", columns: [["peer", false], ["received", true], ["sent", true]],
      rows: rows.map(([name, one, other]) => [name, bytes(one), bytes(other)]) }),
  };
}

export function seconds(view) {
  const waited = new Map();
  for (const one of view.mine.rounds) {
    for (const [peer, took] of one.waits || []) waited.set(peer, (waited.get(peer) || 0) + took);
  }
  let rows = [...waited].map(([peer, took]) => [view.runs.nameOf(peer, view.list), took]);
  const isByPull = rows.length > 0;
  if (!isByPull) {
    rows = together(view.list).map((run) => [run.name, run.rounds.reduce((sum, one) => sum + (one.seconds || 0), 0)]);
  }
  rows = rows.filter(([, took]) => took > 0).sort((a, b) => b[1] - a[1]);
  if (!rows.length) return null;
  const colours = look();
  const most = rows.slice(0, MAX_BARS);
  return {
    caption: isByPull ? `Seconds that ${label(view)} waited for each peer` : "Seconds in rounds, by peer",
    said: `The most: ${rows[0][0]}, ${duration(rows[0][1])}.${isByPull ? " Several are asked at the same time." : ""}${rows.length > most.length ? ` The ${most.length} with the most are drawn, of ${rows.length}.` : ""}`,
    traces: bars(most, duration, [["seconds", 1]], colours),
    layout: { bargap: 0.3, xaxis: { title: { text: "seconds", standoff: 6 }, rangemode: "tozero" },
      yaxis: { ...names(categories(most.map((one) => one[0]))), autorange: "reversed", showgrid: false, ticks: "" },
      margin: { l: roomFor(most.map((one) => one[0])) } },
    table: () => ({ caption: "Seconds", columns: [["peer", false], ["seconds", true]], rows: rows.map(([name, took]) => [name, figure(took)]) }),
  };
}

// --- churn, privacy -----------------------------------------------------------------------------

export function present(view) {
  const { mine } = view;
  const here = new Set();
  const numbers = [];
  const told = [];
  for (const one of mine.rounds) {
    for (const [peer, stay] of one.left || []) {
      here.delete(peer);
      told.push([one.round, called(view, peer), `was gone, after ${duration(stay)}`]);
    }
    for (const peer of one.joined || []) {
      if (!here.has(peer)) told.push([one.round, called(view, peer), "came"]);
      here.add(peer);
    }
    numbers.push(here.size);
  }
  if (!told.length) return null;
  const colours = look();
  const left = told.filter(([, , what]) => what !== "came").length;
  return {
    caption: `Others that were there, as ${label(view)} saw it`,
    said: `${count(here.size, "other peer is", "other peers are")} there; ${left ? count(left, "time somebody was gone", "times somebody was gone") : "nobody has gone"}. A peer counts as gone when it cannot be reached.`,
    traces: [{ type: "scatter", mode: "lines", fill: "tozeroy", line: { color: colours.good, width: 2, shape: "hv" }, fillcolor: `${colours.good}28`,
      x: rounds(mine), y: numbers, hovertemplate: "round %{x}: %{y} there<extra></extra>" }],
    layout: { xaxis: ROUNDS, yaxis: { title: { text: "other peers", standoff: 8 }, rangemode: "tozero", tickformat: "d" } },
    table: () => ({ caption: "Who came and went", columns: [["round", true], ["peer", false], ["what happened", false]], rows: told }),
  };
}

export function epsilon(view) {
  const { mine } = view;
  if (!hasAny(mine, "epsilon")) return null;
  const colours = look();
  const budget = mine.about.budget;
  const spent = mine.last.epsilon;
  const traces = [line(mine, "epsilon", "spent", { color: colours.accent, width: 3 })];
  const legend = [["line", colours.accent, "spent by training"]];
  if (hasAny(mine, "trust_epsilon")) {
    traces.push(line(mine, "trust_epsilon", "by trust", { color: colours.palette[1], width: 2 }));
    legend.push(["thin", colours.palette[1], "spent on other examples, by learning trust"]);
  }
  if (budget) {
    traces.push({ type: "scatter", mode: "lines", x: [1, Math.max(mine.about.rounds, mine.last.round)], y: [budget, budget], line: { color: colours.warn, width: 2, dash: "dash" }, hoverinfo: "skip" });
    legend.push(["dash", colours.warn, "budget"]);
  }
  return {
    caption: "Epsilon spent, by round",
    said: budget ? `Epsilon ${figure(spent)} of ${figure(budget)} is spent. Less is more private.` : `Epsilon ${figure(spent)} is spent. Less is more private.`,
    legend, traces, layout: { xaxis: ROUNDS, yaxis: { title: { text: "epsilon", standoff: 8 }, rangemode: "tozero" } },
    table: () => ({ caption: "Epsilon by round", columns: [["round", true], ["training", true], ["trust", true]],
      rows: mine.rounds.map((one) => [one.round, figure(one.epsilon), figure(one.trust_epsilon)]) }),
  };
}
