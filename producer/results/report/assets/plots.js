// The plots, by Observable Plot. Each says in words what it shows; one without data is left out.

import { h, section, whenNear } from "./dom.js";
import { chunkText } from "./data.js";
import { count, fixed, ofStride, percent, settingLabel } from "./format.js";

// Distinguishable by all (Okabe and Ito), on light and dark.
const HUES = { greedy: "#0b84c9", sample: "#d98c00", nucleus: "#12ab80", beam: "#9a4580", other: "#8a8f98" };
const hueOf = (strategy) => HUES[strategy] ?? HUES.other;
const SYMBOLS = { greedy: "square", sample: "circle", nucleus: "triangle", beam: "diamond" };

const short = (value) => d3.format("~s")(value);

let libraries = null;
function loadLibraries() {
  libraries ??= chunkText("libraries").then((text) => document.head.append(h("script", {}, text)));
  return libraries;
}

export function plotsSection(data) {
  const grid = h("div", { class: "plots" });
  const wanted = [heatMaps, diversity, lengths, finishReasons, firstRanks, entropy, night].flatMap((make) => make(data) ?? []);
  const figures = wanted.map(({ title, words, isWide, draw }) => {
    const canvas = h("div", { class: "canvas" });
    const figure = h("figure", { class: isWide ? "plot plot-wide" : "plot" }, h("figcaption", {}, h("strong", {}, title), ": ", h("span", {}, words)), canvas);
    whenNear(figure, () => drawn(canvas, title, words, draw));
    return figure;
  });
  grid.append(...figures);
  return section("plots", "Plots", figures.length ? grid : h("p", { class: "note" }, "There are no answers to plot yet."));
}

async function drawn(canvas, title, words, draw) {
  await loadLibraries();
  let width = 0;
  const redraw = () => {
    const now = Math.floor(canvas.clientWidth);
    if (!now || now === width) return;
    width = now;
    const node = draw(width), image = node.tagName === "svg" ? node : node.querySelector("svg:last-of-type");
    for (const part of node.querySelectorAll("svg [aria-label]")) part.removeAttribute("aria-label"); // the image has one
    image.setAttribute("role", "img");
    image.setAttribute("aria-label", `${title}. ${words}`);
    canvas.replaceChildren(node);
  };
  new ResizeObserver(redraw).observe(canvas);
  redraw();
}

const plot = (width, options) => Plot.plot({
  width, height: 250, marginLeft: 48, marginBottom: 44, style: { background: "transparent", fontSize: "12px", fontFamily: "inherit" }, ...options,
});

const answered = (data) => data.settings.filter((setting) => setting.count);

function heatMaps(data) {
  const points = answered(data).filter(({ values }) => values.temperature !== undefined && Object.keys(values).every((name) => ["temperature", "top_p"].includes(name)))
    .map((setting) => ({ ...setting, temperature: setting.values.temperature, top_p: setting.values.top_p ?? 1 }));
  const cells = new Set(points.map(({ temperature, top_p }) => `${temperature} ${top_p}`));
  // Sampling without a cut is nucleus sampling with a top-p of 1; where a run has both, each strategy has its own maps.
  const groups = cells.size === points.length ? [[points, ""]]
    : strategies(data).map((strategy) => [points.filter((point) => point.strategy === strategy), `, ${strategy}`]);
  return groups.filter(([group]) => isMap(group)).flatMap(([group, of]) => heatMapsOf(group, of));
}

const isMap = (points) => ["temperature", "top_p"].every((name) => new Set(points.map((point) => point[name])).size > 1);

function heatMapsOf(points, of) {
  const metrics = [
    ["Distinct answers", "distinct", count], ["Mean logprob", "logprob", (value) => fixed(value, 2)], ["Valid JSON", "json", percent],
  ].filter(([, field]) => points.some((point) => point[field] !== null));
  return metrics.map(([title, field, format]) => ({
    title, words: `by temperature and top-p${of}.`, draw: (width) => heatMap(width, points, field, format),
  }));
}

function heatMap(width, points, field, format) {
  const shown = points.filter((point) => point[field] !== null), [least, most] = d3.extent(shown, (point) => point[field]);
  const shade = (point) => (most > least ? (point[field] - least) / (most - least) : 0.5);
  return plot(width, {
    height: 84 + 44 * new Set(shown.map((point) => point.top_p)).size, padding: 0.04,
    x: { type: "band", label: "temperature" }, y: { type: "band", label: "top-p", reverse: true },
    color: { type: "linear", domain: [0, 1], range: ["#e8f1fa", "#0b4a8f"] },
    marks: [
      Plot.cell(shown, { x: "temperature", y: "top_p", fill: shade, rx: 4, inset: 1 }),
      Plot.text(shown, { x: "temperature", y: "top_p", text: (point) => format(point[field]), fill: (point) => (shade(point) > 0.55 ? "#ffffff" : "#10243c"), fontWeight: 600 }),
    ],
  });
}

function diversity(data) {
  const points = answered(data).filter((setting) => setting.diversity !== null && setting.logprob !== null);
  if (points.length < 2) return null;
  const named = [...new Set(points.map((point) => point.strategy))];
  return {
    title: "Diversity against likelihood", words: "each mark is a setting: new answers among repeated ones, by mean logprob of a token.",
    draw: (width) => plot(width, {
      color: { domain: named, range: named.map(hueOf) }, symbol: { legend: true, domain: named, range: named.map((name) => SYMBOLS[name] ?? "star") },
      grid: true, x: { label: "mean logprob", nice: true, inset: 8 }, y: { label: "diversity", percent: true, domain: [0, 100], inset: 8 },
      marks: [Plot.dot(points, {
        x: "logprob", y: "diversity", r: 5, fill: "strategy", symbol: "strategy", fillOpacity: 0.8, stroke: "currentColor", strokeOpacity: 0.3,
        channels: { setting: { value: settingLabel, label: "setting" } },
        tip: { fill: "var(--card)", format: { fill: false, stroke: false, symbol: false } },
      })],
    }),
  };
}

// The strategies that have answers, in the order of the settings.
function strategies(data) {
  return [...new Set(answered(data).map((setting) => setting.strategy))];
}

function entropy(data) {
  const settings = answered(data).filter((setting) => setting.entropy.length > 1);
  if (!settings.length) return null;
  const largest = strategies(data).map((strategy) => settings.filter((setting) => setting.strategy === strategy).sort((a, b) => b.tokens - a.tokens)[0]).filter(Boolean);
  const points = largest.flatMap((setting) => setting.entropy.map(([position, low, middle, high]) => ({ strategy: setting.strategy, position, low, middle, high })));
  return {
    title: "Entropy by position", words: `median with its quartile band, in nats${ofStride(data)}, of ${largest.map(settingLabel).join("; ")}.`, isWide: true,
    draw: (width) => plot(width, {
      grid: true, x: { label: "position of the token" }, y: { label: "entropy (nats)", zero: true },
      color: { legend: true, domain: largest.map((setting) => setting.strategy), range: largest.map((setting) => hueOf(setting.strategy)) },
      marks: [
        Plot.areaY(points, { x: "position", y1: "low", y2: "high", fill: "strategy", fillOpacity: 0.16, curve: "monotone-x" }),
        Plot.lineY(points, { x: "position", y: "middle", stroke: "strategy", strokeWidth: 1.8, curve: "monotone-x" }),
        Plot.ruleY([0], { strokeOpacity: 0.3 }),
      ],
    }),
  };
}

function lengths(data) {
  const found = answered(data).flatMap((setting) => setting.lengths.map(([length, number]) => ({ strategy: setting.strategy, length, number })));
  if (!found.length) return null;
  const named = strategies(data);
  return {
    title: "Answer lengths", words: "answers by their number of tokens.",
    draw: (width) => plot(width, {
      x: { label: "tokens" }, y: { label: "answers", grid: true, tickFormat: short },
      color: { legend: true, domain: named, range: named.map(hueOf) },
      marks: [Plot.rectY(found, Plot.binX({ y: "sum" }, { x: "length", y: "number", fill: "strategy", inset: 0.5, thresholds: 30 })), Plot.ruleY([0], { strokeOpacity: 0.3 })],
    }),
  };
}

function finishReasons(data) {
  const bars = strategies(data).flatMap((strategy) => {
    const sums = {};
    for (const setting of answered(data).filter((each) => each.strategy === strategy))
      for (const [reason, number] of Object.entries(setting.finish)) sums[reason] = (sums[reason] ?? 0) + number;
    return Object.entries(sums).map(([reason, number]) => ({ strategy, reason, number }));
  });
  if (!bars.length) return null;
  return {
    title: "How answers ended", words: "by an end token (eos), a stop string or the token limit (length).",
    draw: (width) => plot(width, {
      height: 84 + 34 * strategies(data).length, marginLeft: 64, x: { label: "share of answers", percent: true }, y: { label: null },
      color: { legend: true, domain: ["eos", "stop", "length"], range: ["#0a9c72", "#0b84c9", "#d98c00"] },
      marks: [Plot.barX(bars, Plot.stackX({ offset: "normalize" }, { x: "number", y: "strategy", fill: "reason", rx: 2, insetTop: 3, insetBottom: 3, insetRight: 1 }))],
    }),
  };
}

function firstRanks(data) {
  const settings = answered(data).filter((setting) => setting.rank1 !== null).sort((a, b) => b.rank1 - a.rank1).slice(0, 24);
  if (!settings.length) return null;
  return {
    title: "Tokens of rank 1", words: `the share of tokens that were the model's likeliest${ofStride(data)}.`,
    draw: (width) => plot(width, {
      height: 74 + 20 * settings.length, marginLeft: Math.min(236, width / 1.8), marginRight: 58,
      x: { label: "share", percent: true, domain: [0, 100] }, y: { label: null, domain: settings.map(settingLabel), tickSize: 0 },
      marks: [
        Plot.barX(settings, { x: "rank1", y: settingLabel, fill: (setting) => hueOf(setting.strategy), rx: 2, insetTop: 2, insetBottom: 2 }),
        Plot.text(settings, { x: "rank1", y: settingLabel, text: (setting) => percent(setting.rank1, 1), textAnchor: "start", dx: 4 }),
      ],
    }),
  };
}

// Kind of a mark on the timeline -> its symbol, hue and words.
const EVENTS = {
  failed: ["times", "#d33", "crosses are failures"], requeued: ["triangle2", "#d98c00", "triangles jobs that went back to the queue"],
  restarts: ["asterisk", "#9a4580", "stars engines that started again"],
};

function night(data) {
  if (!data.timeline) return null;
  const { begin, span, running, waiting, speed, sequences } = data.timeline;
  const at = (index) => new Date(new Date(begin).getTime() + 1000 * span * (index + 0.5));
  const curves = { "tokens/s": speed, [sequences ? "sequences running" : "jobs running"]: sequences ?? running, "jobs waiting": waiting };
  const kinds = Object.keys(EVENTS).filter((kind) => data.timeline[kind].some(Boolean));
  const marks = kinds.flatMap((kind) => data.timeline[kind].map((value, index) => ({ kind, value, at: at(index) }))).filter((mark) => mark.value);
  const told = ["tokens a second, and the " + (sequences ? "sequences that ran on its model's workers, and the jobs that waited" : "jobs that ran and waited"), ...kinds.map((kind) => EVENTS[kind][2])];
  const domain = [at(-0.5), at(speed.length - 0.5)];
  return {
    title: "The night", words: `${data.isPart ? "of the whole run: " : ""}${told.join("; ")}.`, isWide: true,
    draw: (width) => h("div", {}, Object.entries(curves).map(([name, values], index) => {
      const points = values.map((value, bucket) => ({ value, at: at(bucket) })), isLast = index === 2;
      return plot(width, {
        height: isLast ? 140 : 104, marginTop: 22, marginRight: 20, marginBottom: isLast ? 40 : 8,
        x: { type: "utc", domain, label: isLast ? "UTC" : null, axis: isLast ? "bottom" : null }, y: { label: name, grid: true, ticks: 3, zero: true, tickFormat: short },
        marks: [
          Plot.areaY(points, { x: "at", y: "value", fill: "#0b84c9", fillOpacity: 0.16, curve: "step" }),
          Plot.lineY(points, { x: "at", y: "value", stroke: "#0b84c9", strokeWidth: 1.5, curve: "step" }),
          index === 1 ? kinds.map((kind) => Plot.dot(marks.filter((mark) => mark.kind === kind), { x: "at", y: 0, symbol: EVENTS[kind][0], stroke: EVENTS[kind][1], strokeWidth: 2, title: (mark) => `${mark.value} ${kind}` })) : null,
        ],
      });
    })),
  };
}
