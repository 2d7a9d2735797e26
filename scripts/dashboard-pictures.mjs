// Draws each dashboard as one SVG from what Prometheus answered: node dashboard-pictures.mjs <answers.json> <directory>
//
// One chart a panel, of the panel's own kind, with its axes, unit, thresholds and legend. No Grafana is involved: what is
// shown is the data and the questions, not its look.
import { mkdirSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const [answersFile, directory] = process.argv.slice(2);
const { from, to, answers } = JSON.parse(readFileSync(answersFile, "utf8"));
const source = join(dirname(fileURLToPath(import.meta.url)), "../dashboards");

const COLUMNS = 3;
const [WIDE, HIGH, GAP] = [400, 250, 12];
const POINTS = 70;
const SERIES = 8;
const COLOURS = ["#2f7ed8", "#e07b00", "#2e9e4f", "#b8408f", "#7a5cc9", "#0f9aa8", "#c9302c", "#8a7500"];
const NAMED = { green: "#2e9e4f", yellow: "#d9a400", orange: "#e07b00", red: "#c9302c", blue: "#2f7ed8", purple: "#7a5cc9" };
const PLOT = { x: 52, y: 34, w: WIDE - 64, h: 120 };

const escaped = (text) => String(text).replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]);
const short = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);
const n = (value) => String(Math.round(value * 10) / 10);
const text = (x, y, words, more = "") => `<text x="${n(x)}" y="${n(y)}"${more && ` ${more}`}>${escaped(words)}</text>`;
const box = (x, y, w, h, fill, more = "") => `<rect x="${n(x)}" y="${n(y)}" width="${n(Math.max(w, 0.4))}" height="${n(h)}" fill="${fill}"${more && ` ${more}`}/>`;

function told(value, unit) {
  if (value === null || Number.isNaN(value)) return "–";
  const digits = (v) => (v === 0 ? "0" : Math.abs(v) >= 100 ? v.toFixed(0) : Math.abs(v) >= 10 ? v.toFixed(1) : Number(v.toPrecision(2)).toString()).replace(/\.0$/, "");
  if (unit === "percentunit") return `${digits(value * 100)} %`;
  if (unit === "bytes") return value >= 1 << 20 ? `${digits(value / (1 << 20))} MiB` : `${digits(value / 1024)} KiB`;
  if (unit === "s") {
    if (value > 0 && value < 1) return value < 0.001 ? `${digits(value * 1e6)} µs` : `${digits(value * 1000)} ms`;
    return value >= 120 ? `${digits(value / 60)} min` : `${digits(value)} s`;
  }
  if (unit === "ops") return `${digits(value)}/s`;
  return value >= 10_000 ? `${digits(value / 1000)} k` : digits(value);
}

/** Every series of a panel: what it is called, and its finite samples. */
function seriesOf(panel, answer) {
  const all = panel.targets.flatMap((target, index) =>
    (answer[index] ?? []).map(({ metric, values }) => ({
      name: target.legendFormat.replace(/\{\{(\w+)\}\}/g, (_, label) => metric[label] ?? "").trim(),
      values: values.filter(([, value]) => Number.isFinite(value)),
      labels: metric,
      unit: panel.fieldConfig.overrides.find(({ matcher }) => matcher.options === target.refId)?.properties[0].value ?? panel.fieldConfig.defaults.unit,
    })),
  );
  return all.filter(({ values }) => values.length > 0);
}

const last = ({ values }) => values.at(-1)?.[1] ?? null;
const greatest = ({ values }) => Math.max(...values.map(([, value]) => value));

/** A figure of one second each; of many, at most POINTS, each the mean of its neighbours. */
function thinned(values) {
  const every = Math.ceil(values.length / POINTS);
  const thin = [];
  for (let at = 0; at < values.length; at += every) {
    const some = values.slice(at, at + every);
    thin.push([some[0][0], some.reduce((sum, [, value]) => sum + value, 0) / some.length]);
  }
  return thin;
}

function nice(top) {
  if (!(top > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(top));
  return power * [1, 1.5, 2, 3, 4, 5, 6, 8, 10].find((step) => step * power >= top * 0.999);
}

const across = (at) => PLOT.x + ((at - from) / (to - from)) * PLOT.w;

function axes(top, unit) {
  let drawn = "";
  for (const part of [0, 0.5, 1]) {
    const y = PLOT.y + PLOT.h * (1 - part);
    drawn += `<path d="M${PLOT.x} ${n(y)}h${PLOT.w}" class="grid"/>`;
    if (top !== null) drawn += text(PLOT.x - 5, y + 3, told(top * part, unit), 'class="tick" text-anchor="end"');
  }
  return drawn + time();
}

function time() {
  const seconds = to - from;
  const step = [5, 10, 15, 30, 60, 120].find((some) => seconds / some <= 6) ?? 300;
  let drawn = "";
  for (let at = 0; at <= seconds; at += step) {
    const label = step >= 60 ? `${at / 60} min` : `${at} s`;
    drawn += text(across(from + at), PLOT.y + PLOT.h + 13, label, 'class="tick" text-anchor="middle"');
  }
  return drawn;
}

function legend(series, unit, y = PLOT.y + PLOT.h + 30) {
  const rows = Math.ceil(Math.min(series.length, SERIES) / 2);
  let drawn = "";
  series.slice(0, SERIES).forEach((one, index) => {
    const x = 14 + (index >= rows ? WIDE / 2 : 0);
    const row = y + (index % rows) * 14;
    drawn += box(x, row - 7, 8, 8, COLOURS[index]) + text(x + 12, row, short(one.name, 22), 'class="name"');
    drawn += text(x + WIDE / 2 - 24, row, told(last(one), one.unit ?? unit), 'class="name" text-anchor="end"');
  });
  if (series.length > SERIES) drawn += text(WIDE - 12, HIGH - 8, `${series.length - SERIES} more series`, 'class="tick" text-anchor="end"');
  return drawn;
}

function thresholds(panel, top) {
  return panel.fieldConfig.defaults.thresholds.steps
    .filter(({ value }) => value !== null && value > 0 && value <= top)
    .map(({ value, color }) => `<path d="M${PLOT.x} ${n(PLOT.y + PLOT.h * (1 - value / top))}h${PLOT.w}" stroke="${NAMED[color]}" stroke-dasharray="4 3" fill="none"/>`)
    .join("");
}

function chart(panel, series) {
  const { unit, custom } = panel.fieldConfig.defaults;
  const isStacked = custom.stacking?.mode === "normal";
  const isBars = custom.drawStyle === "bars";
  // What never was anything says least.
  const shown = [...series].sort((a, b) => greatest(b) - greatest(a)).slice(0, SERIES);
  const lines = shown.map(({ values }) => thinned(values));
  const below = new Map();
  const stacked = lines.map((line) =>
    line.map(([at, value]) => {
      const base = isStacked ? (below.get(at) ?? 0) : 0;
      if (isStacked) below.set(at, base + value);
      return [at, base, base + value];
    }),
  );
  const top = nice(Math.max(...stacked.flat().map(([, , value]) => value), 0));
  const up = (value) => PLOT.y + PLOT.h * (1 - Math.max(value, 0) / top);
  const place = (at, value) => `${n(across(at))} ${n(up(value))}`;
  let drawn = axes(top, unit) + thresholds(panel, top);
  stacked.forEach((line, index) => {
    const colour = COLOURS[index];
    if (isBars) {
      const w = (PLOT.w / POINTS) * 0.7;
      drawn += line.filter(([, base, value]) => value - base > top / 500)
        .map(([at, base, value]) => box(across(at) - w / 2, up(value), w, up(base) - up(value), colour)).join("");
      return;
    }
    const points = line.map(([at, , value]) => place(at, value));
    if (isStacked) {
      const back = [...line].reverse().map(([at, base]) => place(at, base));
      drawn += `<path d="M${[...points, ...back].join("L")}Z" fill="${colour}" fill-opacity=".35"/>`;
    }
    drawn += points.length > 1 ? `<path d="M${points.join("L")}" stroke="${colour}" class="line"/>` : `<circle cx="${points[0].split(" ")[0]}" cy="${points[0].split(" ")[1]}" r="2" fill="${colour}"/>`;
  });
  return drawn + legend([...shown, ...series.filter((one) => !shown.includes(one))], unit);
}

const worded = (panel, value) => panel.fieldConfig.defaults.mappings[0]?.options[value]?.text ?? null;

function coloured(panel, value) {
  const reached = panel.fieldConfig.defaults.thresholds.steps.filter((step) => step.value === null || value >= step.value);
  return NAMED[reached.at(-1)?.color] ?? NAMED.green;
}

function stat(panel, series) {
  const { unit } = panel.fieldConfig.defaults;
  const some = series.slice(0, 4);
  const w = (WIDE - 24) / some.length;
  return some
    .map((one, index) => {
      const [x, value] = [12 + index * w, last(one)];
      const top = nice(greatest(one));
      const line = thinned(one.values).map(([at, v]) => `${n(x + 8 + ((at - from) / (to - from)) * (w - 16))} ${n(230 - (Math.max(v, 0) / top) * 70)}`);
      const words = worded(panel, value) ?? told(value, one.unit ?? unit);
      const size = Math.min(44, (w - 10) / (words.length * 0.58));
      return (
        text(x + w / 2, 100, words, `text-anchor="middle" font-size="${n(size)}" font-weight="600" fill="${coloured(panel, value)}"`) +
        text(x + w / 2, 126, short(one.name, Math.floor(w / 6.4)), 'class="name" text-anchor="middle"') +
        `<path d="M${x + 8} 231h${n(w - 16)}" class="grid"/>` +
        text(x + 8, 155, told(top, one.unit ?? unit), 'class="tick"') +
        `<path d="M${line.join("L")}" stroke="${coloured(panel, value)}" class="line"/>`
      );
    })
    .join("");
}

function gauge(panel, series) {
  const { unit, max = 1 } = panel.fieldConfig.defaults;
  return series
    .slice(0, 3)
    .map((one, index) => {
      const [value, y] = [last(one), 70 + index * 56];
      const marks = panel.fieldConfig.defaults.thresholds.steps.filter((step) => step.value !== null);
      return (
        box(14, y, WIDE - 28, 18, "#e8eaed") +
        box(14, y, Math.min(value / max, 1) * (WIDE - 28), 18, coloured(panel, value)) +
        marks.map((step) => box(14 + (step.value / max) * (WIDE - 28) - 1, y - 3, 2, 24, NAMED[step.color])).join("") +
        text(14, y + 34, `${one.name}: ${told(value, unit)}`, 'class="name"') +
        text(WIDE - 14, y + 34, told(max, unit), 'class="tick" text-anchor="end"')
      );
    })
    .join("");
}

function states(panel, series) {
  const rows = series.slice(0, 8);
  const h = Math.min(22, 176 / rows.length);
  let drawn = "";
  rows.forEach((one, index) => {
    const y = 36 + index * h;
    drawn += text(14, y + h / 2 + 3, short(one.name, 26), 'class="name"');
    let begun = null;
    const values = [...one.values, [Infinity, null]];
    values.forEach(([at, value], i) => {
      if (begun && value === begun.value && at - values[i - 1][0] < 5) return;
      if (begun) {
        const left = 170 + ((begun.at - from) / (to - from)) * (WIDE - 184);
        const right = 170 + ((values[i - 1][0] + 1 - from) / (to - from)) * (WIDE - 184);
        drawn += box(left, y + 2, Math.min(right, WIDE - 14) - left, h - 4, begun.value === 0 && panel.title.startsWith("T10") ? "#e8eaed" : coloured(panel, begun.value));
        const words = worded(panel, begun.value);
        if (words?.trim() && right - left > 40) drawn += text((left + right) / 2, y + h / 2 + 3, words, 'class="in" text-anchor="middle"');
      }
      begun = { at, value };
    });
  });
  const seconds = to - from;
  for (const part of [0, 0.5, 1]) {
    const label = seconds > 120 ? `${n((seconds * part) / 60)} min` : `${n(seconds * part)} s`;
    drawn += text(170 + part * (WIDE - 184), 36 + rows.length * h + 12, label, `class="tick" text-anchor="${["start", "middle", "end"][part * 2]}"`);
  }
  return drawn;
}

function table(panel, series) {
  const { unit } = panel.fieldConfig.defaults;
  const rows = series.filter((one) => one.values.at(-1)[0] >= to - 5).sort((a, b) => last(b) - last(a));
  const shown = rows.slice(0, 11);
  let drawn = shown
    .map((one, index) => {
      const y = 48 + index * 17;
      return `<path d="M14 ${y + 5}H${WIDE - 14}" class="grid"/>` + text(14, y, short(one.name, 52), 'class="name"') +
        text(WIDE - 14, y, told(last(one), unit), `class="name" text-anchor="end" fill="${coloured(panel, last(one))}"`);
    })
    .join("");
  if (rows.length > shown.length) drawn += text(WIDE - 12, HIGH - 8, `${rows.length - shown.length} more rows`, 'class="tick" text-anchor="end"');
  return drawn || text(WIDE / 2, 110, panel.fieldConfig.defaults.noValue, 'class="tick" text-anchor="middle"');
}

function heatmap(panel, series) {
  const bounds = series
    .map((one) => ({ le: Number(one.labels.le === "+Inf" ? Infinity : one.labels.le), values: new Map(thinned(one.values)) }))
    .sort((a, b) => a.le - b.le);
  const times = [...bounds[0].values.keys()];
  const h = PLOT.h / bounds.length;
  const cells = bounds.flatMap((bound, row) =>
    times.map((at) => [at, row, Math.max((bound.values.get(at) ?? 0) - (bounds[row - 1]?.values.get(at) ?? 0), 0)]),
  );
  const top = Math.max(...cells.map(([, , count]) => count), 1e-9);
  let drawn = time();
  bounds.forEach((bound, row) => {
    const y = PLOT.y + PLOT.h - row * h;
    if (row % 4 === 0 || bound.le === Infinity) drawn += text(PLOT.x - 5, y, bound.le === Infinity ? "more" : `≤ ${told(bound.le, "s")}`, 'class="tick" text-anchor="end"');
  });
  const w = PLOT.w / times.length;
  drawn += cells
    .filter(([, , count]) => count > top / 200)
    .map(([at, row, count]) => box(across(at), PLOT.y + PLOT.h - (row + 1) * h, w, h, "#d9480f", `fill-opacity="${n(Math.sqrt(count / top) * 0.9 + 0.1)}"`))
    .join("");
  for (let step = 0; step <= 4; step++) {
    const x = 14 + step * 70;
    drawn += box(x, PLOT.y + PLOT.h + 24, 10, 10, "#d9480f", `fill-opacity="${n(Math.sqrt(step / 4) * 0.9 + 0.1)}"`) + text(x + 14, PLOT.y + PLOT.h + 33, told((top * step) / 4, "none"), 'class="name"');
  }
  return drawn + text(14, PLOT.y + PLOT.h + 52, "events within 15 s", 'class="tick"');
}

const draw = { timeseries: chart, stat, gauge, "state-timeline": states, table, heatmap };

function picture(board, answer) {
  const rows = Math.ceil(board.panels.length / COLUMNS);
  const [width, height] = [COLUMNS * (WIDE + GAP) + GAP, rows * (HIGH + GAP) + GAP + 40];
  const panels = board.panels.map((panel, index) => {
    const [x, y] = [GAP + (index % COLUMNS) * (WIDE + GAP), 40 + GAP + Math.floor(index / COLUMNS) * (HIGH + GAP)];
    const series = seriesOf(panel, answer[panel.id] ?? []);
    const inside = series.length > 0
      ? draw[panel.type](panel, series)
      : text(WIDE / 2, 110, panel.targets.length > 0 && (answer[panel.id] ?? []).flat().length > 0 ? "nothing has happened yet" : panel.fieldConfig.defaults.noValue, 'class="tick" text-anchor="middle"');
    return `<g transform="translate(${x} ${y})">${box(0, 0, WIDE, HIGH, "#fff", 'rx="4" stroke="#d5d9de"')}${text(12, 21, panel.title, 'class="title"')}${inside}</g>`;
  });
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" font-family="system-ui, sans-serif" font-size="11" fill="#24292f">
<style>.title{font-size:13px;font-weight:600}.tick{fill:#6a737d;font-size:10px}.name{font-size:10.5px}.in{font-size:9.5px;fill:#fff}.grid{stroke:#e4e7eb;fill:none}.line{fill:none;stroke-width:1.4;stroke-linejoin:round}</style>
${box(0, 0, width, height, "#f4f5f7")}
${text(GAP, 30, board.title, 'font-size="18" font-weight="600"')}
${panels.join("\n")}
</svg>
`;
}

mkdirSync(directory, { recursive: true });
for (const file of readdirSync(source).filter((name) => name.endsWith(".json"))) {
  const board = JSON.parse(readFileSync(join(source, file), "utf8"));
  const name = file.replace("system-bus-", "").replace(".json", ".svg");
  writeFileSync(join(directory, name), picture(board, answers[file]));
}
