"use strict";
// Charts on canvases: a heat map, bars and lines. Each shows its values where the pointer is.

const tip = document.getElementById("tip");

function showTip(event, text) {
  tip.hidden = !text;
  if (!text) return;
  tip.textContent = text;
  const box = tip.getBoundingClientRect();
  const left = Math.min(event.clientX + 14, innerWidth - box.width - 8);
  const below = event.clientY + 18 + box.height < innerHeight;
  tip.style.left = `${Math.max(left, 4)}px`;
  tip.style.top = `${below ? event.clientY + 18 : event.clientY - box.height - 10}px`;
}

function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

// One hue from the paper to full strength, light or dark, so that lightness alone carries the value.
const RAMPS = {
  light: [[244, 246, 249], [157, 193, 224], [52, 124, 184], [4, 55, 105]],
  dark: [[33, 38, 46], [22, 78, 122], [68, 152, 208], [226, 240, 190]],
};

function heat(value) {
  const ramp = RAMPS[document.documentElement.dataset.theme === "dark" ? "dark" : "light"];
  const place = Math.min(Math.max(value, 0), 1) * (ramp.length - 1);
  const low = Math.min(Math.floor(place), ramp.length - 2);
  const mixed = ramp[low].map((from, i) => Math.round(from + (place - low) * (ramp[low + 1][i] - from)));
  return `rgb(${mixed.join(",")})`;
}

function canvasIn(holder, height) {
  holder.replaceChildren();
  const canvas = document.createElement("canvas");
  holder.append(canvas);
  const width = holder.clientWidth;
  const scale = devicePixelRatio || 1;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  canvas.style.height = `${height}px`;
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  pen.font = "12px system-ui, sans-serif";
  return { canvas, pen, width };
}

function shortened(pen, text, room) {
  if (pen.measureText(text).width <= room) return text;
  // The end of a layer's name tells the layers apart.
  while (text.length > 1 && pen.measureText(`…${text}`).width > room) text = text.slice(1);
  return `…${text}`;
}

function number(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  return Number.isInteger(value) ? value.toLocaleString("en") : value.toFixed(digits);
}

function ratio(value) {
  return value === null || value === undefined ? "–" : value.toFixed(3);
}

function largest(values, least) {
  return values.reduce((most, value) => (value === null ? most : Math.max(most, value)), least);
}

function percent(value) {
  return value === null || value === undefined ? "–" : `${(100 * value).toFixed(1)} %`;
}

// A step of 1, 2 or 5 times a power of ten that gives at most `most` ticks.
function step(range, most) {
  const rough = Math.max(range / Math.max(most, 1), 1e-12);
  const power = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 5, 10].map((factor) => factor * power).find((each) => each >= rough * 0.999);
}

// values: rows of numbers, null for no cell. options: rowNames, columnTitle, columnLabel(i), top, describe(r, c), onRow;
// show(top) writes the highest value; markZero crosses out the cells of 0; readableRows leaves room for every row's name.
function heatMap(holder, values, options) {
  const rows = values.length;
  const columns = largest(values.map((row) => row.length), 1);
  const rowHeight = Math.max(Math.min(260 / rows, 26), options.readableRows ? 13 : Math.min(13, 420 / rows));
  const probe = document.createElement("canvas").getContext("2d");
  probe.font = "12px system-ui, sans-serif";
  const widest = largest(options.rowNames.map((name) => probe.measureText(name).width), 0);
  const left = Math.min(widest + 12, holder.clientWidth * 0.34, 220);
  const inner = holder.clientWidth - left - 76;
  const side = options.square ? Math.min(inner, 380) : inner;
  const cellHeight = options.square ? side / rows : rowHeight;
  const plotHeight = cellHeight * rows;
  const above = 6; // for half of the first row's name
  const { canvas, pen } = canvasIn(holder, plotHeight + above + 40);
  pen.translate(0, above);
  const cellWidth = side / columns;
  const gap = cellWidth > 8 && cellHeight > 8 ? 1 : 0;
  values.forEach((row, r) => row.forEach((value, c) => {
    if (value === null) return;
    pen.fillStyle = heat(value / options.top);
    const [x, y, extra] = [left + c * cellWidth, r * cellHeight, gap ? -gap : 0.5];
    pen.fillRect(x, y, cellWidth + extra, cellHeight + extra);
    if (!options.markZero || value > 0) return;
    pen.strokeStyle = color("second");
    pen.beginPath();
    pen.moveTo(x + cellWidth * 0.25, y + cellHeight * 0.25);
    pen.lineTo(x + cellWidth * 0.75, y + cellHeight * 0.75);
    pen.moveTo(x + cellWidth * 0.75, y + cellHeight * 0.25);
    pen.lineTo(x + cellWidth * 0.25, y + cellHeight * 0.75);
    pen.stroke();
  }));
  pen.strokeStyle = color("line");
  pen.strokeRect(left + 0.5, 0.5, side - 1, plotHeight - 1);
  pen.fillStyle = color("soft");
  pen.textBaseline = "middle";
  pen.textAlign = "right";
  const everyRow = Math.max(Math.ceil(13 / cellHeight), 1);
  options.rowNames.forEach((name, r) => {
    if (r % everyRow) return;
    pen.fillText(shortened(pen, name, left - 10), left - 6, (r + 0.5) * cellHeight);
  });
  pen.textAlign = "center";
  const label = options.columnLabel || ((c) => `${c}`);
  const everyColumn = Math.max(Math.ceil((pen.measureText(label(columns - 1)).width + 12) / cellWidth), 1);
  for (let c = 0; c < columns; c += everyColumn) pen.fillText(label(c), left + (c + 0.5) * cellWidth, plotHeight + 11);
  pen.fillText(options.columnTitle, left + side / 2, plotHeight + 29);
  key(pen, left + side + 12, Math.min(plotHeight, 160), (options.show || percent)(options.top));
  const cellAt = (event) => {
    const box = canvas.getBoundingClientRect();
    const c = Math.floor((event.clientX - box.left - left) / cellWidth);
    const r = Math.floor((event.clientY - box.top - above) / cellHeight);
    return r >= 0 && r < rows && c >= 0 && c < values[r].length ? [r, c] : null;
  };
  canvas.onpointermove = (event) => {
    const cell = cellAt(event);
    showTip(event, cell && options.describe(...cell));
  };
  canvas.onpointerleave = (event) => showTip(event, "");
  if (options.onRow) {
    canvas.classList.add("clickable");
    canvas.onclick = (event) => { const cell = cellAt(event); if (cell) options.onRow(cell[0]); };
  }
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", options.title);
}

// The values that the colours stand for.
function key(pen, left, height, top) {
  for (let y = 0; y < height; y += 1) {
    pen.fillStyle = heat(1 - y / height);
    pen.fillRect(left, y, 10, 1.5);
  }
  pen.fillStyle = color("soft");
  pen.textAlign = "left";
  pen.textBaseline = "top";
  pen.fillText(top, left + 14, 0);
  pen.textBaseline = "bottom";
  pen.fillText("0", left + 14, height);
  pen.textBaseline = "middle";
}

function axes(pen, box, top, show) {
  pen.strokeStyle = color("line");
  pen.fillStyle = color("soft");
  pen.textAlign = "right";
  pen.textBaseline = "middle";
  const by = step(top, 5);
  for (let value = 0; value <= top * 1.0001; value += by) {
    const y = box.bottom - (value / top) * (box.bottom - box.top);
    pen.beginPath();
    pen.moveTo(box.left, y);
    pen.lineTo(box.right, y);
    pen.stroke();
    pen.fillText(show(value), box.left - 6, y);
  }
}

// bars: [{value, faint}], the faint part at the top of each bar. options: line, columnTitle, describe(i).
function barChart(holder, bars, options) {
  const { canvas, pen, width } = canvasIn(holder, 260);
  const box = { left: 48, right: width - 8, top: 8, bottom: 222 };
  const top = largest(bars.map((bar) => bar.value), options.line) * 1.06;
  axes(pen, box, top, (value) => `${Math.round(1000 * value) / 10} %`);
  const each = (box.right - box.left) / bars.length;
  const height = (value) => (value / top) * (box.bottom - box.top);
  bars.forEach((bar, i) => {
    const x = box.left + i * each + Math.min(each * 0.12, 6);
    const wide = each - 2 * Math.min(each * 0.12, 6);
    pen.fillStyle = color("faint");
    pen.fillRect(x, box.bottom - height(bar.value), wide, height(bar.value));
    pen.fillStyle = color("accent");
    pen.fillRect(x, box.bottom - height(bar.value - bar.faint), wide, height(bar.value - bar.faint));
  });
  pen.strokeStyle = color("second");
  pen.setLineDash([6, 4]);
  pen.lineWidth = 1.5;
  pen.beginPath();
  pen.moveTo(box.left, box.bottom - height(options.line));
  pen.lineTo(box.right, box.bottom - height(options.line));
  pen.stroke();
  pen.fillStyle = color("soft");
  pen.textAlign = "center";
  const every = Math.max(Math.ceil((pen.measureText(`${bars.length}`).width + 12) / each), 1);
  for (let i = 0; i < bars.length; i += every) pen.fillText(`${i}`, box.left + (i + 0.5) * each, box.bottom + 12);
  pen.fillText(options.columnTitle, (box.left + box.right) / 2, box.bottom + 30);
  canvas.onpointermove = (event) => {
    const i = Math.floor((event.clientX - canvas.getBoundingClientRect().left - box.left) / each);
    showTip(event, i >= 0 && i < bars.length ? options.describe(i) : "");
  };
  canvas.onpointerleave = (event) => showTip(event, "");
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", options.title);
}

// lines: [{name, color, dash, values}], values null where there are none; x: end of each window.
function lineChart(holder, x, lines, options) {
  const { canvas, pen, width } = canvasIn(holder, 240);
  const legend = document.createElement("div");
  legend.className = "legend";
  const box = { left: 48, right: width - 12, top: 8, bottom: 202 };
  const top = options.top || largest(lines.flatMap((line) => line.values), 1) * 1.06;
  axes(pen, box, top, (value) => number(Math.round(100 * value) / 100, step(top, 5) < 0.1 ? 2 : 1));
  const last = x[x.length - 1] || 1;
  const at = (i, value) => [
    box.left + (x[i] / last) * (box.right - box.left),
    box.bottom - (value / top) * (box.bottom - box.top),
  ];
  pen.fillStyle = color("soft");
  pen.textAlign = "center";
  const by = Math.max(step(last, width / 90), 1);
  for (let value = 0; value <= last; value += by) {
    // The last label stays within the canvas.
    const most = width - pen.measureText(number(value)).width / 2;
    pen.fillText(number(value), Math.min(box.left + (value / last) * (box.right - box.left), most), box.bottom + 12);
  }
  pen.fillText("call", (box.left + box.right) / 2, box.bottom + 30);
  pen.lineWidth = 2;
  lines.forEach((line) => {
    pen.strokeStyle = pen.fillStyle = color(line.color);
    pen.setLineDash(line.dash);
    pen.beginPath();
    let drawn = false;
    line.values.forEach((value, i) => {
      if (value === null) { drawn = false; return; }
      const [px, py] = at(i, value);
      if (drawn) pen.lineTo(px, py); else pen.moveTo(px, py);
      if (line.values.length === 1) pen.fillRect(px - 4, py - 4, 8, 8);
      drawn = true;
    });
    pen.stroke();
    if (lines.length > 1) {
      const entry = document.createElement("span");
      const mark = document.createElement("i");
      mark.style.borderTopColor = color(line.color);
      mark.style.borderTopStyle = line.dash.length === 0 ? "solid" : line.dash[0] > 3 ? "dashed" : "dotted";
      entry.append(mark, line.name);
      legend.append(entry);
    }
  });
  if (lines.length > 1) holder.append(legend);
  canvas.onpointermove = (event) => {
    const place = (event.clientX - canvas.getBoundingClientRect().left - box.left) / (box.right - box.left) * last;
    if (place < 0 || place > last * 1.02) { showTip(event, ""); return; }
    let i = x.findIndex((end) => end >= place);
    if (i < 0) i = x.length - 1;
    const from = i ? x[i - 1] + 1 : 1;
    const when = from === x[i] ? `call ${number(from)}` : `calls ${number(from)} to ${number(x[i])}`;
    showTip(event, [when, ...lines.map((line) => `${line.name}: ${number(line.values[i])}`)].join("\n"));
  };
  canvas.onpointerleave = (event) => showTip(event, "");
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", options.title);
}
