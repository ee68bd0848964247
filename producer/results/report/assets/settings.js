// The table of settings: a column per parameter and figure, sortable, shaded by size; of all prompts or of one.

import { h, section, wide, button } from "./dom.js";
import { count, fixed, ofStride, percent } from "./format.js";
import { promptOf } from "./data.js";

const FIGURES = [
  ["answers", "count", count], ["distinct", "distinct", count], ["diversity", "diversity", percent],
  ["mean tokens", "length", (value) => fixed(value, 1)], ["ended itself", "ended", percent],
  ["logprob / token", "logprob", (value) => fixed(value, 3)], ["rank 1", "rank1", (value) => percent(value, 1)],
  ["repeated pairs", "repetition", percent], ["valid JSON", "json", percent],
];

export function settingsSection(data) {
  const place = h("div"), note = h("p", { class: "note" }, explanation(data));
  const show = (settings) => place.replaceChildren(wide("Table of settings", settingsTable(data, settings)));
  show(data.settings);
  return section("settings", "Settings", promptChoice(data, show), place, note);
}

const explanation = (data) =>
  "Diversity is the share of repeated answers that are new: 0 % where every answer to a prompt is the same. " +
  "Valid JSON counts only prompts that ask for JSON." + (data.stride > 1 ? ` Rank 1 is counted by token${ofStride(data)}.` : "") + (data.folded ? " There are more settings than are told apart." : "");

function promptChoice(data, show) {
  if (data.prompts.length < 2) return null;
  const options = data.prompts.slice(0, 500).map((prompt, number) => h("option", { value: number }, prompt.id));
  const choose = async (event) => show(event.target.value === "all" ? data.settings : await settingsOfPrompt(data, Number(event.target.value)));
  return h("label", { class: "choice" }, "Figures of ", h("select", { onchange: choose }, h("option", { value: "all" }, "all prompts"), options));
}

async function settingsOfPrompt(data, number) {
  const prompt = await promptOf(number);
  const found = data.settings.map((setting, index) => {
    const answers = prompt.answers.filter((answer) => answer.s === index && answer.g !== undefined);
    const jobs = {};
    for (const answer of prompt.answers) if (answer.s === index && answer.g === undefined) jobs[answer.state] = (jobs[answer.state] ?? 0) + 1;
    return { ...setting, ...figures(prompt, answers), rank1: null, jobs };
  });
  return found.filter((setting) => setting.count || Object.keys(setting.jobs).length);
}

function figures(prompt, answers) {
  const mean = (read, of = answers) => (of.length ? of.reduce((sum, answer) => sum + read(answer), 0) / of.length : null);
  const distinct = new Set(answers.map((answer) => answer.g)).size;
  return {
    count: answers.length, distinct, diversity: answers.length > 1 ? (distinct - 1) / (answers.length - 1) : null,
    length: mean((answer) => answer.len), ended: mean((answer) => Number(answer.end !== "length")),
    logprob: mean((answer) => answer.lp, answers.filter((answer) => answer.lp !== undefined)), repetition: mean((answer) => prompt.repetition[answer.g]),
    json: prompt.json && mean((answer) => Number(prompt.json[answer.g])),
  };
}

function settingsTable(data, settings) {
  const names = [...new Set(settings.flatMap((setting) => Object.keys(setting.values)))];
  const states = ["failed", "cancelled", "expired"].filter((state) => settings.some((setting) => setting.jobs[state]));
  const shown = FIGURES.filter(([, field]) => settings.some((setting) => setting[field] !== null));
  const columns = [
    { label: "strategy", read: (setting) => setting.strategy, format: String },
    ...names.map((name) => ({ label: name.replaceAll("_", " "), read: (setting) => setting.values[name] ?? null, format: (value) => (value === null ? "" : String(value)) })),
    ...shown.map(([label, field, format]) => ({ label, read: (setting) => setting[field], format, isFigure: field !== "count" })),
    ...states.map((state) => ({ label: state, read: (setting) => setting.jobs[state] ?? 0, format: count })),
  ];
  const order = (a, b) => names.reduce((found, name) => found || (a.values[name] ?? -1) - (b.values[name] ?? -1), a.strategy.localeCompare(b.strategy));
  return sortable(columns, [...settings].sort(order), "Settings with their figures");
}

// A table whose headings sort it; figures are shaded between their least and their largest value.
export function sortable(columns, rows, caption) {
  const body = h("tbody"), ranges = columns.map((column) => range(column, rows));
  const fill = (sorted) => body.replaceChildren(...sorted.map((row) => h("tr", {}, columns.map((column, index) => cell(column, row, ranges[index], index)))));
  const headings = columns.map((column) => h("th", { scope: "col", "aria-sort": "none" }, button(column.label, (event) => sortBy(event, column))));
  const sortBy = (event, column) => {
    const heading = event.target.closest("th"), isDown = heading.getAttribute("aria-sort") === "descending";
    headings.forEach((each) => each.setAttribute("aria-sort", "none"));
    heading.setAttribute("aria-sort", isDown ? "ascending" : "descending");
    fill([...rows].sort((a, b) => (isDown ? 1 : -1) * compare(column.read(a), column.read(b))));
  };
  fill(rows);
  return h("table", { class: "figures" }, h("caption", {}, caption), h("thead", {}, h("tr", {}, headings)), body);
}

function compare(a, b) {
  if (a === null || b === null) return (a !== null) - (b !== null);
  return typeof a === "string" ? -a.localeCompare(b) : a - b;
}

function range(column, rows) {
  if (!column.isFigure) return null;
  const values = rows.map(column.read).filter((value) => value !== null && value !== undefined);
  const least = Math.min(...values), most = Math.max(...values);
  return values.length > 1 && most > least ? [least, most] : null;
}

function cell(column, row, bounds, index) {
  const value = column.read(row), node = h(index ? "td" : "th", index ? {} : { scope: "row" }, column.format(value));
  if (bounds && value !== null && value !== undefined) {
    node.className = "shaded";
    node.style.setProperty("--size", ((value - bounds[0]) / (bounds[1] - bounds[0])).toFixed(3));
  }
  return node;
}
