// The top of the page: where its numbers are from, and the failures with the commands that retry them.

import { h, section, button } from "./dom.js";
import { count, many } from "./format.js";
import { clamped } from "./cards.js";

export function provenance({ run, made, environments }) {
  const facts = [
    ["run", run.id], ["state", run.state], ["model", run.model], ["source", run.source], ["submitted", run.created_at],
    ["finished", run.finished_at ?? "not yet"], ["page made", `${made} UTC`],
  ];
  const used = environments.map((each, index) => [environments.length > 1 ? `environment ${index + 1}` : "environment",
    [each.model, `weights ${each.weights_hash}`, `tokenizer ${each.tokenizer_hash}`, each.dtype, each.device, each.attention, versions(each.versions)].join(" · ")]);
  return h("details", { class: "provenance" }, h("summary", {}, "Where these numbers come from"),
    h("dl", {}, [...facts, ...used].map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))));
}

function versions(found) {
  const all = typeof found === "string" ? JSON.parse(found) : found;
  return Object.entries(all).filter(([, value]) => typeof value === "string").map(([name, value]) => `${name} ${value}`).join(", ");
}

export function failuresSection(data) {
  if (!data.failures.length) return section("failures", "Failures", withoutFailures(data));
  const number = data.failures.reduce((sum, cause) => sum + cause.count, 0);
  return section("failures", `Failures (${count(number)})`, h("ul", { class: "causes" }, data.failures.map((cause) => causeItem(cause, data))),
    data.isPart ? h("p", { class: "note" }, "These commands retry all such jobs of the run; this page has some of them.") : null);
}

function withoutFailures({ all, isPart }) {
  const total = Object.values(all.jobs).reduce((sum, number) => sum + number, 0), open = (all.jobs.queued ?? 0) + (all.jobs.running ?? 0);
  if (!total) return h("p", { class: "note" }, isPart ? "No job of the run is selected." : "The run has no jobs.");
  const done = isPart ? "None of these jobs failed." : "Every job succeeded.";
  return h("p", { class: "good" }, open ? `No job has failed so far; ${many(open, "job is", "jobs are")} not done.` : done);
}

function causeItem({ state, code, error, count: number, examples }, data) {
  const kind = state === "failed" && /^\w+$/.test(code) ? `--error-code ${code}` : `--${state}`;
  const ids = examples.map((id) => h("code", { class: "one-line", title: id }, id));
  return h("li", { class: "cause" },
    h("h3", {}, h("span", { class: "badge bad" }, count(number)), ` ${code || state}`),
    error ? clamped(h("p", { class: "text" }, error), "error") : null,
    h("p", { class: "note" }, number > ids.length ? "for example " : "", ids.flatMap((id, index) => (index ? [", ", id] : [id]))),
    commandLine(`producer retry ${data.run.id} ${kind}${data.options}`));
}

export function commandLine(text) {
  const copy = button("Copy", async () => {
    await navigator.clipboard.writeText(text);
    copy.textContent = "Copied";
  }, { class: "small" });
  return h("p", { class: "command" }, h("code", {}, text), navigator.clipboard ? copy : null);
}
