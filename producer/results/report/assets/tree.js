// A tree of sequences by their common beginnings: samples of a prompt, or the hypotheses of a beam search.

import { h, visible } from "./dom.js";
import { many } from "./format.js";

// `sequences` are {parts, texts, label, weight}: equal parts at equal places share a branch.
export function tree(sequences, title) {
  const root = branch(sequences, 0);
  return h("figure", { class: "tree", "aria-label": title }, h("figcaption", {}, title), h("ul", {}, node(root, true)));
}

function branch(sequences, begin) {
  let end = begin;
  const [first] = sequences;
  while (end < first.parts.length && sequences.every(({ parts }) => end < parts.length && parts[end] === first.parts[end])) end += 1;
  const text = first.texts.slice(begin, end).join("");
  const next = new Map();
  for (const sequence of sequences) {
    const key = sequence.parts.length > end ? sequence.parts[end] : null;
    next.set(key, [...(next.get(key) ?? []), sequence]);
  }
  if (next.size === 1) return { text, sequences, begin, end, branches: [] };
  return { text, sequences, begin, end, branches: [...next.values()].map((members) => branch(members, end)) };
}

const total = (sequences) => sequences.reduce((sum, { weight }) => sum + weight, 0);

function node({ text, sequences, begin, end, branches }, isRoot = false) {
  const words = visible(text).replace(/\n/g, "↵");
  const label = h("span", { class: "branch-text" }, words || (isRoot ? "(they part at once)" : "(ends here)"));
  if (!branches.length) {
    return h("li", { class: "leaf" }, label, sequences.map((each) => h("span", { class: "leaf-label" }, each.label)));
  }
  const summary = h("summary", {}, label, h("span", { class: "fork" },
    `${many(branches.length, "way")} from position ${end} · ${many(total(sequences), "sequence")}`));
  return h("li", {}, h("details", { open: true }, summary, h("ul", {}, branches.map((each) => node(each)))));
}
