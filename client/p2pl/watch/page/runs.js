// What the server has told of the runs: kept here, and asked by the figures.

/** One run, and all of its rounds so far. */
class Run {
  constructor(number) {
    this.number = number;
    this.about = { label: "", metrics: [], rounds: 0, state: "waiting" };
    this.rounds = [];
    this.at = new Map(); // round -> entry
    this.messages = [];
    this.heaviest = 0; // of all weights so far
  }

  get name() {
    return this.about.short || this.about.label;
  }

  add(entries) {
    for (const one of entries) {
      this.rounds.push(one);
      const flat = one.trust || [];
      for (let at = 1; at < flat.length; at += 2) if (flat[at] > this.heaviest) this.heaviest = flat[at];
      this.at.set(one.round, one);
    }
  }

  cut(after) {
    while (this.rounds.length && this.rounds[this.rounds.length - 1].round > after) {
      this.at.delete(this.rounds.pop().round);
    }
  }

  get last() {
    return this.rounds[this.rounds.length - 1];
  }

  get metric() {
    return this.about.metrics[0] || { name: "score", title: "Score", unit: "", axis: "score", higher: true };
  }

  /** The newest entry of a round that is not later than this one. */
  upTo(round) {
    if (this.at.has(round)) return this.at.get(round);
    let found;
    for (const one of this.rounds) {
      if (one.round > round) break;
      found = one;
    }
    return found;
  }
}

/** All runs, the ids of all peers, and what is waited for. */
export class Runs {
  constructor() {
    this.clear();
  }

  clear() {
    this.all = [];
    this.peers = []; // id by number
    this.waiting = [];
  }

  /** Takes in one event of the server. */
  take(kind, value) {
    if (kind === "hello") this.clear();
    else if (kind === "peers") this.peers.push(...value.ids);
    else if (kind === "waiting") this.waiting = value.paths;
    else if (kind === "run") {
      this.of(value.run).about = value;
      this.shorten(value.session);
    }
    else if (kind === "cut") this.of(value.run).cut(value.after);
    else if (kind === "rounds") this.of(value.run).add(value.rounds);
    else if (kind === "messages") this.of(value.run).messages.push(...value.messages);
  }

  of(number) {
    while (this.all.length <= number) this.all.push(new Run(this.all.length));
    return this.all[number];
  }

  /** Calls runs of one session by what tells them apart: peer-3, not seed-0/peer-3. */
  shorten(session) {
    const list = this.in(session || "");
    for (const isAlone of [false, true]) {
      const some = list.filter((run) => Boolean(run.about.alone) === isAlone);
      const folders = new Set(some.map((run) => run.about.label.split("/").slice(0, -1).join("/")));
      for (const run of some) run.about.short = folders.size === 1 ? run.about.label.split("/").pop() : run.about.label;
    }
    const others = new Set(list.filter((run) => !run.about.alone).map((run) => run.about.short));
    for (const run of list) if (run.about.alone && others.has(run.about.short)) run.about.short += " alone";
  }

  /** Session ids in the order in which their first run came. */
  get sessions() {
    return [...new Set(this.all.map((run) => run.about.session || ""))];
  }

  in(session) {
    return this.all.filter((run) => (run.about.session || "") === session);
  }

  /** What a peer is called: the folder of its run where it is watched, else the start of its id. */
  nameOf(peer, runs) {
    const run = runs.find((one) => one.about.peer === peer && !one.about.alone);
    return run ? run.name : this.shortId(peer);
  }

  shortId(peer) {
    return (this.peers[peer] || "?").slice(0, 8);
  }
}

/** Whether the other runs of a session have peers of their own beside this one. */
export function together(runs) {
  return runs.filter((run) => !run.about.alone);
}
