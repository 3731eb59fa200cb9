// How figures look: numbers with their units, colours of the day or night, tables, and Plotly.

export const PALETTE = {
  light: ["#1f6aa5", "#b35c00", "#1c7a4d", "#9a3f78", "#4a7fb5", "#8a6d00", "#5b5b9f"],
  dark: ["#6db3ec", "#f0a04b", "#5fcf97", "#e08abb", "#9cc7ee", "#d9bd4a", "#b0aef0"],
};
const SCALE = {
  light: [[0, "#eef4f9"], [0.15, "#c3daed"], [0.4, "#79aed6"], [0.7, "#2f78b3"], [1, "#0d3b66"]],
  dark: [[0, "#1d2833"], [0.15, "#24435f"], [0.4, "#2f6ea3"], [0.7, "#5fa8e0"], [1, "#d5ebff"]],
};
const night = window.matchMedia("(prefers-color-scheme: dark)");

export function onNight(act) {
  night.addEventListener("change", () => {
    looks = null;
    act();
  });
}

let looks = null; // asking the browser costs a tenth of a drawing

export function look() {
  looks ??= colours();
  return looks;
}

function colours() {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue(name).trim();
  const mode = night.matches ? "dark" : "light";
  return {
    ink: of("--ink"), soft: of("--soft"), line: of("--line"), grid: of("--grid"), card: of("--card"),
    accent: of("--accent"), warn: of("--warn"), good: of("--good"), empty: of("--empty"),
    palette: PALETTE[mode], scale: SCALE[mode],
  };
}

// --- numbers ------------------------------------------------------------------------------------

/** Three digits that matter, as the terminal shows them. */
export function figure(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size === 0 || (size >= 0.001 && size < 1000)) return value.toFixed(3);
  return Number(value.toPrecision(3)).toString();
}

export function shown(metric, value) {
  if (value === null || value === undefined) return "–";
  if (metric.unit === "%") return `${value.toFixed(1)} %`;
  return `${figure(value)} ${metric.unit}`.trim();
}

export function bytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  let value = count || 0;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${unit && value < 100 ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 0.0005) return "0 s";
  if (seconds < 0.0995) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

export function count(number, one, many) {
  return `${number} ${number === 1 ? one : many}`;
}

/** Plotly reads a few tags in its texts: what strangers wrote must not be any. */
export function plain(text) {
  return String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

// --- elements -----------------------------------------------------------------------------------

/** An element; its children are elements or texts, and a text is never read as HTML. */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
}

/** A table. A column is [heading, whether its cells are numbers]. */
export function table(caption, columns, rows) {
  const heads = columns.map(([name, isNumber]) =>
    element("th", { scope: "col", class: isNumber ? "number" : null }, name));
  const body = rows.map((row) => element("tr", {}, ...row.map((cell, at) =>
    element("td", { class: columns[at][1] ? "number" : null }, cell))));
  return element("table", {}, element("caption", {}, caption),
    element("thead", {}, element("tr", {}, ...heads)), element("tbody", {}, ...body));
}

/** A sample of a line or an area, for a legend; of a scale, all its colours. */
export function sample(kind, colour) {
  if (kind === "scale") {
    const bar = element("span", { class: "scale", "aria-hidden": "true" });
    bar.style.background = `linear-gradient(to right, ${colour.map(([at, one]) => `${one} ${100 * at}%`).join(", ")})`;
    return bar;
  }
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("width", "22");
  svg.setAttribute("height", "12");
  svg.setAttribute("aria-hidden", "true");
  const marks = { diamond: "M11 1 16 6 11 11 6 6z", cross: "M6 3 8 1 11 4 14 1 16 3 13 6 16 9 14 11 11 8 8 11 6 9 9 6z" };
  const name = kind === "area" ? "rect" : kind in marks ? "path" : "line";
  const shape = document.createElementNS("http://www.w3.org/2000/svg", name);
  const at = kind === "area"
    ? { x: 2, y: 0, width: 18, height: 12, rx: 2, fill: colour }
    : kind in marks ? { d: marks[kind], fill: colour } : { x1: 0, y1: 6, x2: 22, y2: 6, stroke: colour, "stroke-width": kind === "thin" ? 1.5 : 3 };
  if (kind === "dash") at["stroke-dasharray"] = "6 4";
  if (kind === "dot") at["stroke-dasharray"] = "2 3";
  for (const [key, value] of Object.entries(at)) shape.setAttribute(key, value);
  svg.append(shape);
  return svg;
}

// --- figures ------------------------------------------------------------------------------------

const MAX_ROWS = 500; // of a table beside a figure

/** A figure with a caption, a sentence, a legend, a chart, and its numbers as a table. */
export class Figure {
  constructor(id, caption, draw) {
    this.frame = document.getElementById(id);
    this.draw = draw;
    this.isSeen = false;
    this.isStale = true;
    this.caption = element("figcaption", { id: `${id}-caption` }, caption);
    this.said = element("p", { class: "summary", id: `${id}-said` });
    this.legend = element("ul", { class: "legend" });
    this.plot = element("div", { class: "plot" });
    this.chart = element("div", { class: "chart", role: "img", "aria-labelledby": `${id}-caption`,
      "aria-describedby": `${id}-said` }, this.plot);
    this.table = element("div", { class: "scroll", role: "region", tabindex: "0",
      "aria-labelledby": `${id}-caption` });
    this.more = element("details", {}, element("summary", {}, "The numbers as a table"), this.table);
    this.more.addEventListener("toggle", () => this.fill());
    this.frame.append(this.caption, this.said, this.legend, this.chart, this.more);
    this.rows = () => null;
  }

  /** Shows what `draw` returns: {caption, said, legend, traces or cells, layout, table}. */
  show(view) {
    this.isStale = false;
    const made = this.draw(view);
    this.frame.hidden = !made;
    if (!made) return;
    if (made.caption && made.caption !== this.caption.textContent) this.caption.textContent = made.caption;
    if (made.said !== this.said.textContent) this.said.textContent = made.said;
    const legend = made.legend || [];
    const key = JSON.stringify(legend);
    if (key !== this.legendKey) {
      this.legendKey = key;
      this.legend.replaceChildren(...legend.map(([kind, colour, text]) =>
        element("li", {}, sample(kind, colour), text)));
      this.legend.hidden = !legend.length;
    }
    this.rows = made.table;
    this.fill();
    this.around(made);
    if (made.cells) {
      this.map ??= new Cells(this.chart);
      this.map.show(made.cells, made.layout.margin);
    }
    this.drawn = (this.drawn || 0) + 1;
    this.chart.dataset.drawn = this.drawn;
  }

  /** Has Plotly draw; around cells it draws axes alone, and only where they are others than before. */
  around(made) {
    const wanted = layout(made.layout || {});
    if (made.cells) {
      const key = JSON.stringify(wanted);
      if (key === this.layoutKey) return;
      this.layoutKey = key;
    }
    Plotly.react(this.plot, made.traces || [], wanted,
      { displayModeBar: false, responsive: true, scrollZoom: false, doubleClick: "reset" });
  }

  fill() {
    if (!this.more.open) return;
    const made = this.rows();
    if (!made) return this.table.replaceChildren();
    const { caption, columns, rows } = made;
    const cut = rows.length > MAX_ROWS ? `, the last ${MAX_ROWS} of ${rows.length} rows` : "";
    return this.table.replaceChildren(table(caption + cut, columns, rows.slice(-MAX_ROWS)));
  }
}

export const ROUNDS = { title: { text: "round", standoff: 6 }, tickformat: "d" };

const MARGIN = { l: 8, r: 12, t: 8, b: 8 };

function layout(own) {
  const colours = look();
  const axis = { gridcolor: colours.grid, zeroline: false, linecolor: colours.line, tickcolor: colours.line,
    automargin: true, ticks: "outside", ticklen: 4, fixedrange: true, ticklabeloverflow: "allow" };
  const { xaxis = {}, yaxis = {}, margin = {}, ...rest } = own;
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false,
    font: { family: "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", size: 12, color: colours.soft },
    margin: { ...MARGIN, ...margin },
    hoverlabel: { bgcolor: colours.card, bordercolor: colours.line, font: { color: colours.ink } },
    hovermode: "closest", dragmode: false,
    xaxis: { ...axis, ...xaxis }, yaxis: { ...axis, ...yaxis }, ...rest,
  };
}

const GAP_CELLS = 40; // rows or columns below which cells are set apart

/** A map of weights, drawn cell by cell: Plotly takes ten times as long for as many as a swarm has. */
class Cells {
  constructor(chart) {
    this.canvas = element("canvas", { class: "cells" });
    this.small = element("canvas"); // a cell a pixel
    this.tip = element("div", { class: "tip", hidden: "" });
    chart.append(this.canvas, this.tip);
    this.canvas.addEventListener("mousemove", (event) => this.point(event));
    this.canvas.addEventListener("mouseleave", () => { this.tip.hidden = true; });
    new ResizeObserver(() => this.paint()).observe(this.canvas);
  }

  /** Shows {weights, rejected, most, where}, rows of cells; `where` says in words what a cell is. */
  show(cells, margin) {
    const { l, r, t, b } = { ...MARGIN, ...margin };
    Object.assign(this.canvas.style, { left: `${l}px`, top: `${t}px`,
      width: `calc(100% - ${l + r}px)`, height: `calc(100% - ${t + b}px)` });
    this.cells = cells;
    this.paint();
  }

  paint() {
    const { canvas, cells } = this;
    const [wide, high] = [canvas.clientWidth, canvas.clientHeight].map((one) => Math.round(one * devicePixelRatio));
    if (!cells || !wide || !high) return;
    Object.assign(canvas, { width: wide, height: high });
    const pen = canvas.getContext("2d");
    const [rows, columns] = [cells.weights.length, cells.weights[0].length];
    Object.assign(this.small, { width: columns, height: rows });
    const inks = this.small.getContext("2d");
    const picture = inks.createImageData(columns, rows);
    const numbers = new Uint32Array(picture.data.buffer);
    const shades = ramp(look().scale);
    const warn = number(look().warn);
    for (let row = 0; row < rows; row += 1) {
      for (let column = 0; column < columns; column += 1) {
        const weight = cells.weights[row][column];
        if (cells.rejected[row][column] !== null) numbers[row * columns + column] = warn;
        else if (weight !== null) numbers[row * columns + column] = shades[Math.min(255, Math.round(255 * weight / cells.most))];
      }
    }
    inks.putImageData(picture, 0, 0);
    pen.imageSmoothingEnabled = false;
    pen.drawImage(this.small, 0, 0, wide, high);
    if (rows > GAP_CELLS || columns > GAP_CELLS) return;
    pen.fillStyle = look().card;
    for (let row = 1; row < rows; row += 1) pen.fillRect(0, Math.round(row * high / rows), wide, devicePixelRatio);
    for (let column = 1; column < columns; column += 1) pen.fillRect(Math.round(column * wide / columns), 0, devicePixelRatio, high);
  }

  /** Says what the cell under the mouse is. */
  point(event) {
    const { weights, rejected, where } = this.cells;
    const { left, top, width, height } = this.canvas.getBoundingClientRect();
    const column = Math.floor(weights[0].length * (event.clientX - left) / width);
    const row = Math.floor(weights.length * (event.clientY - top) / height);
    const weight = weights[row]?.[column] ?? null;
    const isTurned = (rejected[row]?.[column] ?? null) !== null;
    this.tip.hidden = weight === null && !isTurned;
    if (this.tip.hidden) return;
    this.tip.textContent = `${where(row, column)}: ${isTurned ? "turned down" : `weight ${weight.toFixed(3)}`}`;
    const isRight = event.clientX - left > width / 2;
    Object.assign(this.tip.style, {
      top: `${this.canvas.offsetTop + event.clientY - top + 14}px`,
      left: isRight ? "auto" : `${this.canvas.offsetLeft + event.clientX - left}px`,
      right: isRight ? `${this.canvas.parentElement.clientWidth - this.canvas.offsetLeft - (event.clientX - left)}px` : "auto",
    });
  }
}

const parts = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));

/** A colour #rrggbb as a canvas keeps it in memory. */
function number(colour, [red, green, blue] = parts(colour)) {
  return (0xff000000 | (blue << 16) | (green << 8) | red) >>> 0;
}

/** 256 colours from the first of a scale to its last, evenly. */
function ramp(scale) {
  return Uint32Array.from({ length: 256 }, (_, at) => {
    const share = at / 255;
    const above = Math.max(1, scale.findIndex(([place]) => place >= share));
    const [[low, from], [high, to]] = [scale[above - 1], scale[above]];
    const [one, other] = [parts(from), parts(to)];
    return number("", one.map((part, which) => Math.round(part + (other[which] - part) * (share - low) / (high - low))));
  });
}

/** Names as categories of an axis: each once, and fit for Plotly. */
export function categories(list) {
  const seen = new Map();
  return list.map((name) => {
    const times = 1 + (seen.get(name) || 0);
    seen.set(name, times);
    return plain(times === 1 ? name : `${name} (${times})`);
  });
}

const MANY = 24; // names that can still be read below each other

/** An axis of names: all of them while they can be read, else a few; it does not measure them. */
export function names(called, most = MANY) {
  const step = called.length > most ? Math.ceil(called.length / (most / 2)) : 1;
  const some = called.filter((_, index) => index % step === 0);
  return { type: "category", categoryorder: "array", categoryarray: called, tickvals: some, ticktext: some.map((name) => short(name)), automargin: false };
}

/** From before the first of so many cells to behind the last one. */
export const span = (cells, first = 0) => [first - 0.5, first + cells - 0.5];

/** Room for names beside a picture, in pixels. */
export function roomFor(called) {
  return 22 + 6.6 * Math.min(14, Math.max(0, ...called.map((name) => name.length)));
}

export function short(name, most = 14) {
  return name.length <= most ? name : `…${name.slice(1 - most)}`;
}
