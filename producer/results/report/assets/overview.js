// The top of the page: where its numbers are from, and the failures with the commands that retry them.

import { h, section, visible, button } from "./dom.js";
import { count, many } from "./format.js";

export function provenance({ run, made, environments }) {
  const facts = [
    ["run", run.id], ["state", run.state], ["model", run.model], ["source", run.source], ["submitted", run.created_at],
    ["finished", run.finished_at ?? "not yet"], ["page made", `${made} UTC`],
  ];
  const used = environments.map((each, index) => [environments.length > 1 ? `environment ${index + 1}` : "environment",
    [each.model, `weights ${each.weights_hash}`, `tokenizer ${each.tokenizer_hash}`, each.dtype, each.device, each.attention, versions(each.versions)].join(" · ")]);
  return h("details", { class: "provenance" }, h("summary", {}, "Where these numbers come from"),
    h("dl", {}, [...facts, ...used].map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, visible(value))))));
}

function versions(found) {
  const all = typeof found === "string" ? JSON.parse(found) : found;
  return Object.entries(all).filter(([, value]) => typeof value === "string").map(([name, value]) => `${name} ${value}`).join(", ");
}

export function failuresSection(data) {
  if (!data.failures.length) {
    const waiting = (data.all.jobs.queued ?? 0) + (data.all.jobs.running ?? 0);
    return section("failures", "Failures", h("p", { class: "good" }, waiting ? `No job has failed so far; ${many(waiting, "job")} are not done.` : "Every job succeeded."));
  }
  const number = data.failures.reduce((sum, cause) => sum + cause.count, 0);
  return section("failures", `Failures (${count(number)})`, h("ul", { class: "causes" }, data.failures.map((cause) => causeItem(cause, data))));
}

function causeItem({ state, code, error, count: number, examples }, data) {
  const kind = state === "failed" && /^\w+$/.test(code) ? `--error-code ${code}` : `--${state}`;
  const ids = examples.map((id) => h("code", {}, visible(id)));
  return h("li", { class: "cause" },
    h("h3", {}, h("span", { class: "badge bad" }, count(number)), ` ${visible(code || state)}`),
    h("p", { class: "text" }, visible(error)),
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
