// Two runs compared by custom_id: how the figures moved, and the answers side by side.

import { h, section, wide, whenNear } from "./dom.js";
import { chunk } from "./data.js";
import { count, fixed, many, percent } from "./format.js";
import { clamped, comparison } from "./cards.js";
import { sortable } from "./settings.js";

const PAIRS_AT_ONCE = 30;

export function comparisonSections(data) {
  return [runsSection(data), changesSection(data), pairsSection(data)];
}

// [name, figure of a run, digits, factor, unit, unit of a change]
const FIGURES_OF_RUNS = [
  ["jobs", (run) => run.jobs, 0], ["succeeded", (run) => run.succeeded, 0], ["failed", (run) => run.failed, 0],
  ["mean tokens", (run) => run.length, 1], ["logprob / token", (run) => run.logprob, 3], ["ended itself", (run) => run.ended, 1, 100, " %", " points"],
  ["repeated pairs", (run) => run.repetition, 1, 100, " %", " points"], ["valid JSON", (run) => run.json, 1, 100, " %", " points"],
];

function runsSection({ runs }) {
  const rows = FIGURES_OF_RUNS.filter(([, read]) => runs.some((run) => read(run) !== null)).map(figureRow(runs));
  const heads = ["", ...runs.map((run) => `${run.letter}: ${run.name}`), "change"].map((text) => (text ? h("th", { scope: "col" }, text) : h("td", {})));
  const models = h("tr", {}, h("th", { scope: "row" }, "model"), runs.map((run) => h("td", {}, run.model)), h("td", {}));
  return section("runs", "The two runs", wide("Figures of both runs",
    h("table", { class: "figures" }, h("caption", {}, "Figures over the jobs that both runs have"), h("thead", {}, h("tr", {}, heads)), h("tbody", {}, models, rows))));
}

const figureRow = (runs) => ([name, read, digits, factor = 1, unit = "", unitOfChange = unit]) => {
  const rounded = (value) => Number((factor * value).toFixed(digits));
  const shown = (value) => value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  const values = runs.map(read), [before, after] = values.map((value) => (value === null ? NaN : rounded(value)));
  const size = shown(Math.abs(after - before)), sign = size === shown(0) ? "" : after > before ? "+" : "−";
  return h("tr", {}, h("th", { scope: "row" }, name), values.map((value) => h("td", {}, value === null ? "–" : `${shown(rounded(value))}${unit}`)),
    h("td", {}, values.includes(null) ? "–" : `${sign}${size}${unitOfChange}`));
};

function changesSection({ changes, only }) {
  const total = Object.values(changes).reduce((sum, number) => sum + number, 0);
  const names = { same: "the same answer", changed: "another answer", gained: "an answer only in B", lost: "an answer only in A", neither: "no answer in either" };
  const bars = Object.entries(names).filter(([kind]) => changes[kind]).map(([kind, name]) => {
    const bar = h("span", { class: `bar ${kind}` });
    bar.style.setProperty("--share", (changes[kind] / total).toFixed(4));
    return h("li", {}, h("span", {}, name), bar, h("span", {}, `${count(changes[kind])} (${percent(changes[kind] / total)})`));
  });
  const alone = [["A", only[0]], ["B", only[1]]].filter(([, number]) => number).map(([letter, number]) => `${many(number, "job")} only in ${letter}`);
  return section("changes", `What changed (${many(total, "job")} in both)`, h("ul", { class: "alternatives changes" }, bars), alone.length ? h("p", { class: "note" }, alone.join(", ")) : null);
}

function pairsSection(data) {
  const list = h("div", { class: "prompt-list" }), sentinel = h("div", { class: "sentinel" }), status = h("p", { class: "note", role: "status" });
  const state = { data, list, numbers: [], shown: 0 };
  const kinds = ["changed", "gained", "lost", "same", "neither"].filter((kind) => data.changes[kind]);
  const choice = h("select", { onchange: () => restart() }, h("option", { value: "" }, "all"), kinds.map((kind) => h("option", { value: kind }, kind)));
  const restart = () => {
    state.numbers = data.pairs.map((_, number) => number).filter((number) => !choice.value || data.pairs[number].kind === choice.value);
    state.shown = 0;
    list.replaceChildren();
    more();
    const total = Object.values(data.changes).reduce((sum, number) => sum + number, 0);
    status.textContent = `Showing ${count(state.numbers.length)} of ${many(total, "job")}${total > data.pairs.length ? "; --all shows every one" : ""}.`;
  };
  const more = () => {
    const next = state.numbers.slice(state.shown, state.shown + PAIRS_AT_ONCE);
    state.shown += next.length;
    list.append(...next.map((number) => pairNode(data, number)));
  };
  if (kinds.includes("changed")) choice.value = "changed";
  new IntersectionObserver((entries) => entries.some((entry) => entry.isIntersecting) && more(), { rootMargin: "1200px" }).observe(sentinel);
  restart();
  return section("pairs", "Side by side", h("div", { class: "toolbar" }, h("label", {}, "Jobs ", choice)), status, list, sentinel);
}

async function pairOf(number) {
  const firsts = await chunk("index");
  let place = firsts.length - 1;
  while (firsts[place] > number) place -= 1;
  const { first, pairs } = await chunk(`pairs-${place}`);
  return pairs[number - first];
}

function pairNode(data, number) {
  const { id, kind } = data.pairs[number], body = h("div", { class: "prompt-body" });
  const node = h("article", { class: "prompt", id: `pair-${number + 1}` }, h("h3", {}, h("a", { class: "anchor", href: `#pair-${number + 1}` }, id), h("span", { class: "facts" }, kind)), body);
  whenNear(node, async () => {
    const pair = await pairOf(number);
    body.replaceChildren(clamped(h("div", { class: "ask text" }, typeof pair.ask === "string" ? pair.ask : JSON.stringify(pair.ask, null, 1)), "prompt"),
      h("div", { class: "pair" }, [0, 1].map((side) => sideOf(pair, side))));
    node.classList.add("ready");
  });
  return node;
}

function sideOf({ sides }, side) {
  const own = sides[side], other = sides[0], letter = "AB"[side];
  const facts = own.text === undefined ? own.state : [many(own.len, "token"), own.end, own.lp === undefined ? null : `${fixed(own.lp, 2)} per token`].filter(Boolean).join(" · ");
  const content = own.text === undefined ? h("p", { class: "text bad-text" }, own.error ?? "no answer")
    : side && other.text !== undefined && other.text !== own.text ? comparison(other.text, own.text) : h("div", { class: "text" }, own.text);
  return h("div", { role: "group", "aria-label": `Answer of run ${letter}` }, h("p", { class: "facts" }, h("span", { class: `badge hue-${side}` }, letter), ` ${facts}`), clamped(content, "answer"));
}
