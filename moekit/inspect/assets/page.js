"use strict";
// The page: reads the record that stands in it, and draws findings, table and the chosen layer.

const COLUMNS = [
  ["name", "layer", (value) => value],
  ["num_experts", "E", number],
  ["top_k", "K", (value) => value || "–"],
  ["calls", "calls", number],
  ["tokens", "tokens", number],
  ["max_violation", "max/mean", (value) => (value === null ? "–" : (value + 1).toFixed(2))],
  ["load_entropy", "H(load)", ratio],
  ["prob_entropy", "H(probs)", ratio],
  ["confidence", "confidence", ratio],
  ["dropped", "dropped", percent],
  ["dead_experts", "dead", number],
  ["busiest", "busiest", number],
  ["busiest_share", "its share", percent],
];
const TILES = [
  ["experts", (s) => number(s.num_experts)],
  ["per token", (s) => (s.top_k ? number(s.top_k) : "–")],
  ["tokens", (s) => number(s.tokens)],
  ["max / mean", (s) => (s.max_violation === null ? "–" : (s.max_violation + 1).toFixed(2))],
  ["entropy of load", (s) => ratio(s.load_entropy)],
  ["entropy of probabilities", (s) => ratio(s.prob_entropy)],
  ["confidence", (s) => ratio(s.confidence)],
  ["dropped", (s) => percent(s.dropped)],
  ["tokens without expert", (s) => percent(s.unrouted)],
  ["dead experts", (s) => number(s.dead_experts)],
];

const byId = (id) => document.getElementById(id);
const sum = (values) => values.reduce((total, value) => total + value, 0);
const state = { layer: 0, sortBy: null, down: true };
let data;

async function read() {
  const packed = Uint8Array.from(atob(byId("data").textContent.trim()), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function choose(index, scroll) {
  state.layer = index;
  history.replaceState(null, "", `#${encodeURIComponent(data.summaries[index].name)}`);
  drawTable();
  drawLayer();
  if (scroll) byId("layer").scrollIntoView({ behavior: "smooth" });
}

function indexOf(name) {
  return data.summaries.findIndex((each) => each.name === name);
}

function drawFindings() {
  const list = byId("findings");
  list.replaceChildren();
  if (data.findings.length) byId("findings-title").textContent = `What stands out (${data.findings.length})`;
  if (!data.findings.length) list.append(element("li", "No layer shows collapse, dead experts or drops."));
  data.findings.forEach((finding) => {
    const item = element("li");
    const link = element("button", finding.layer, "link");
    link.onclick = () => choose(indexOf(finding.layer), true);
    item.append(element("span", finding.severity, `mark ${finding.severity}`), link, `: ${finding.text}`);
    list.append(item);
  });
}

function loads(layer) {
  const total = new Array(layer.num_experts).fill(0);
  layer.load.forEach((row) => row.forEach((value, e) => { total[e] += value; }));
  return total;
}

function drawOverview() {
  const layers = data.record.layers;
  const relative = layers.map((layer) => {
    const load = loads(layer);
    const mean = sum(load) / load.length || 1;
    return load.map((value) => value / mean);
  });
  const top = largest(relative.flat(), 2);
  heatMap(byId("overview"), relative, {
    title: "Load of each expert of each layer over an equal share",
    rowNames: layers.map((layer) => layer.name),
    readableRows: true,
    markZero: true,
    columnTitle: "expert",
    top,
    show: (value) => value.toFixed(1),
    describe: (r, c) => `${layers[r].name}\nexpert ${c}: ${relative[r][c].toFixed(2)} times an equal share`,
    onRow: (r) => choose(r, true),
  });
}

function drawTable() {
  const head = byId("layers").tHead;
  const row = element("tr");
  COLUMNS.forEach(([field, title]) => {
    const cell = element("th");
    const sorted = state.sortBy === field;
    const button = element("button", sorted ? `${title} ${state.down ? "▼" : "▲"}` : title);
    button.onclick = () => {
      state.down = sorted ? !state.down : field !== "name";
      state.sortBy = field;
      drawTable();
    };
    cell.setAttribute("aria-sort", sorted ? (state.down ? "descending" : "ascending") : "none");
    cell.append(button);
    row.append(cell);
  });
  head.replaceChildren(row);
  const order = data.summaries.map((each, index) => index);
  if (state.sortBy) {
    const sign = state.down ? -1 : 1;
    order.sort((a, b) => {
      const [first, second] = [data.summaries[a][state.sortBy], data.summaries[b][state.sortBy]];
      if (first === null || second === null) return (first === null) - (second === null);
      if (typeof first === "string") return sign * first.localeCompare(second, "en", { numeric: true });
      return sign * (first - second);
    });
  }
  byId("layers").tBodies[0].replaceChildren(...order.map((index) => {
    const line = element("tr");
    line.setAttribute("aria-selected", index === state.layer);
    line.onclick = () => choose(index, true);
    COLUMNS.forEach(([field, , show]) => line.append(element("td", show(data.summaries[index][field]))));
    return line;
  }));
}

function drawLayer() {
  const layer = data.record.layers[state.layer];
  const figures = data.summaries[state.layer];
  byId("picker").value = state.layer;
  byId("words").replaceChildren(...data.findings.filter((each) => each.layer === layer.name).map((finding) => {
    const item = element("li");
    item.append(element("span", finding.severity, `mark ${finding.severity}`), finding.text);
    return item;
  }));
  byId("tiles").replaceChildren(...TILES.map(([title, show]) => {
    const tile = element("div");
    tile.append(element("dt", title), element("dd", show(figures)));
    return tile;
  }));
  drawLoad(layer);
  drawOverTime(layer);
  drawPairs(layer);
  drawLabels(layer);
}

function drawLoad(layer) {
  const load = loads(layer);
  const slots = sum(load) || 1;
  const dropped = new Array(layer.num_experts).fill(0);
  (layer.dropped || []).forEach((row) => row.forEach((value, e) => { dropped[e] += value; }));
  barChart(byId("load"), load.map((value, e) => ({ value: value / slots, faint: dropped[e] / slots })), {
    title: "Share of the slots of each expert",
    line: 1 / layer.num_experts,
    columnTitle: "expert",
    describe: (e) => `expert ${e}: ${percent(load[e] / slots)}\n${number(load[e])} slots, ${number(dropped[e])} dropped`,
  });
}

function drawOverTime(layer) {
  const windows = data.over_time[state.layer];
  const ends = [];
  windows.forEach((each) => ends.push((ends[ends.length - 1] || 0) + each.calls));
  const shares = Array.from({ length: layer.num_experts }, (_, e) => layer.load.map((row) => row[e] / (sum(row) || 1)));
  const span = (w) => (windows[w].calls === 1 ? `call ${number(ends[w])}` : `calls ${number(ends[w] - windows[w].calls + 1)} to ${number(ends[w])}`);
  heatMap(byId("time"), shares, {
    title: "Share of the slots of each expert over time",
    rowNames: shares.map((_, e) => `${e}`),
    columnTitle: "call",
    columnLabel: (w) => number(ends[w]),
    top: largest(shares.flat(), 1e-9),
    describe: (e, w) => `expert ${e}, ${span(w)}\n${percent(shares[e][w])} of the slots`,
  });
  const series = (field, shift = 0) => windows.map((each) => (each[field] === null ? null : each[field] + shift));
  lineChart(byId("balance"), ends, [{ name: "max / mean", color: "accent", dash: [], values: series("max_violation", 1) }], {
    title: "Largest load over the mean, over time",
  });
  lineChart(byId("certainty"), ends, [
    { name: "entropy of the load / ln E", color: "accent", dash: [], values: series("load_entropy") },
    { name: "entropy of the probabilities / ln E", color: "second", dash: [8, 4], values: series("prob_entropy") },
    { name: "confidence", color: "third", dash: [2, 3], values: series("confidence") },
  ], { title: "Entropies and confidence over time", top: 1.04 });
}

function drawPairs(layer) {
  const count = layer.num_experts;
  const upper = layer.coactivation;
  const both = (i, j) => (i <= j ? upper[i][j - i] : upper[j][i - j]);
  let top = 0;
  const shares = Array.from({ length: count }, (_, i) => Array.from({ length: count }, (_, j) => {
    if (i === j) return null;
    const share = both(i, i) ? both(i, j) / both(i, i) : 0;
    top = Math.max(top, share);
    return share;
  }));
  byId("coactivation-figure").hidden = top === 0;
  if (top === 0) return;
  heatMap(byId("coactivation"), shares, {
    title: "Share of the tokens of each expert that also chose another",
    square: true,
    rowNames: shares.map((_, i) => `${i}`),
    columnTitle: "expert",
    top,
    describe: (i, j) => (i === j
      ? `expert ${i}: ${number(both(i, i))} tokens`
      : `of the ${number(both(i, i))} tokens of expert ${i}\n${percent(shares[i][j])} also chose expert ${j}`),
  });
}

function drawLabels(layer) {
  const names = data.record.label_names;
  const table = layer.by_label.slice(0, names.length);
  const total = sum(table.flat());
  byId("labels-figure").hidden = total === 0;
  if (total === 0) return;
  const byRows = byId("normalise").value === "rows";
  const columns = table[0].map((_, e) => sum(table.map((row) => row[e])));
  const shares = table.map((row) => row.map((value, e) => value / ((byRows ? sum(row) : columns[e]) || 1)));
  heatMap(byId("labels"), shares, {
    title: "Share of the slots by label and expert",
    rowNames: names,
    columnTitle: "expert",
    top: largest(shares.flat(), 1e-9),
    describe: (l, e) => `${names[l]}, expert ${e}\n${percent(shares[l][e])} of the ${byRows ? "label" : "expert"}, ${number(table[l][e])} slots`,
  });
}

function drawAll() {
  drawFindings();
  drawOverview();
  drawTable();
  drawLayer();
}

function setTheme() {
  const chosen = byId("theme").value;
  const dark = chosen === "dark" || (chosen === "auto" && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  if (data) drawAll();
}

// Of many changes in a row, as when a window is resized, the last one draws.
function later(draw) {
  let timer;
  return () => { clearTimeout(timer); timer = setTimeout(draw, 120); };
}

setTheme();
read().then((document_) => {
  data = document_;
  const layers = data.record.layers;
  byId("picker").append(...layers.map((layer, index) => new Option(layer.name, index)));
  byId("picker").onchange = (event) => choose(Number(event.target.value));
  byId("previous").onclick = () => choose((state.layer + layers.length - 1) % layers.length);
  byId("next").onclick = () => choose((state.layer + 1) % layers.length);
  byId("normalise").onchange = () => drawLabels(layers[state.layer]);
  byId("theme").onchange = setTheme;
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", setTheme);
  // The layer named in the address, else that with the worst finding.
  const named = indexOf(decodeURIComponent(location.hash.slice(1)));
  if (named >= 0) state.layer = named;
  else if (data.findings.length) state.layer = indexOf(data.findings[0].layer);
  drawAll();
  addEventListener("resize", later(drawAll));
}).catch((error) => {
  byId("findings").replaceChildren(element("li", `The record in this page could not be read: ${error.message}`));
});
