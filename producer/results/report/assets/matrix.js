// Prompts by settings: each cell names its group of equal answers, and neighbors with one answer are one cell.

import { h, section, wide, button } from "./dom.js";
import { groupName, many, settingLabel } from "./format.js";

const MATRIX_ROWS_AT_ONCE = 30;
const NUM_HUES = 8;

export function matrixSection(data, goTo) {
  const rows = data.prompts.map((prompt, number) => ({ ...prompt, number })).filter((prompt) => new Set(prompt.cells.map(([setting]) => setting)).size > 1);
  if (!rows.length) return section("matrix", "Equal answers", h("p", { class: "note" }, "Each prompt was answered under one setting, so there is nothing to set side by side."));
  const used = [...new Set(rows.flatMap((prompt) => prompt.cells.map(([setting]) => setting)))].sort((a, b) => a - b);
  const body = h("tbody"), more = button("Show more prompts", () => show());
  const show = () => {
    const begin = body.children.length;
    body.append(...rows.slice(begin, begin + MATRIX_ROWS_AT_ONCE).map((prompt) => matrixRow(prompt, used, goTo)));
    more.hidden = body.children.length >= rows.length;
  };
  show();
  const heads = used.map((setting) => h("th", { scope: "col" }, h("span", {}, settingLabel(data.settings[setting]))));
  const table = h("table", { class: "matrix" }, h("caption", {}, "Answers by prompt and setting; A is the most frequent answer to its prompt"),
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "prompt"), heads)), body);
  return section("matrix", "Equal answers", wide("Equal answers by prompt and setting", table), more);
}

// The groups of a prompt, the most frequent first: group -> rank.
export function groupRanks(cells) {
  const counts = new Map();
  for (const [, group, number] of cells) counts.set(group, (counts.get(group) ?? 0) + number);
  const sorted = [...counts].sort((a, b) => b[1] - a[1] || a[0] - b[0]);
  return new Map(sorted.map(([group], rank) => [group, rank]));
}

function matrixRow(prompt, used, goTo) {
  const ranks = groupRanks(prompt.cells);
  const found = used.map((setting) => [...new Set(prompt.cells.filter(([own]) => own === setting).map(([, group]) => ranks.get(group)))].sort((a, b) => a - b));
  const cells = [];
  found.forEach((names, index) => {
    const isSame = index && names.length === 1 && String(found[index - 1]) === String(names);
    if (isSame) cells.at(-1).colSpan += 1;
    else cells.push(matrixCell(prompt, names, goTo));
  });
  return h("tr", {}, h("th", { scope: "row" }, button(h("span", { class: "two-lines" }, prompt.id), () => goTo(prompt.number), { class: "link", title: prompt.id })), cells);
}

function matrixCell(prompt, ranks, goTo) {
  if (!ranks.length) return h("td", {}, "");
  const label = ranks.length > 2 ? `${many(ranks.length, "answer")}` : ranks.map(groupName).join(" ");
  const hue = ranks.length === 1 ? `hue-${ranks[0] % NUM_HUES}` : "hue-mixed";
  return h("td", { class: hue }, button(ranks.length > 2 ? `${ranks.length} ×` : label, () => goTo(prompt.number), { "aria-label": `${prompt.id}: ${label}` }));
}
