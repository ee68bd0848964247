// The list of prompts: searched, filtered, and unfolded as it is scrolled.

import { h, section, whenNear } from "./dom.js";
import { promptOf } from "./data.js";
import { count, many } from "./format.js";
import { promptContent } from "./cards.js";
import { nextUncertain, shadeChoice } from "./tokens.js";

const PROMPTS_AT_ONCE = 40;

export function promptsSection(data) {
  const list = h("div", { class: "prompt-list" }), sentinel = h("div", { class: "sentinel" }), status = h("p", { class: "note", role: "status" });
  const state = { data, list, numbers: data.prompts.map((_, number) => number), shown: 0, status };
  new IntersectionObserver((entries) => entries.some((entry) => entry.isIntersecting) && showMore(state), { rootMargin: "1200px" }).observe(sentinel);
  restart(state, state.numbers);
  addEventListener("keydown", (event) => shortcut(event, list));
  const node = section("answers", "Answers", toolbar(state), status, list, sentinel);
  return { node, goTo: (number) => goTo(state, number) };
}

function restart(state, numbers) {
  Object.assign(state, { numbers, shown: 0 });
  state.list.replaceChildren();
  showMore(state);
  const { prompts } = state.data, { of } = state.data.shown;
  state.status.textContent = `Showing ${count(numbers.length)} of ${many(of, "prompt")}` +
    (of > prompts.length ? `; this page has the first ${count(prompts.length)}, and ${state.data.more}` : "") + ".";
}

function showMore(state, until = state.shown + PROMPTS_AT_ONCE) {
  const next = state.numbers.slice(state.shown, until);
  state.shown += next.length;
  state.list.append(...next.map((number) => promptNode(state.data, number)));
}

function promptNode(data, number) {
  const { id, answers, groups } = data.prompts[number], body = h("div", { class: "prompt-body" });
  const facts = answers > 1 ? `${many(answers, "answer")}, ${groups === 1 ? "all equal" : many(groups, "different one")}` : answers ? "1 answer" : "no answer";
  const node = h("article", { class: "prompt", id: `prompt-${number + 1}`, tabindex: "-1", "aria-labelledby": `prompt-${number + 1}-title` },
    h("h3", { id: `prompt-${number + 1}-title` }, h("a", { href: `#prompt-${number + 1}`, class: "anchor" }, id), h("span", { class: "facts" }, facts)), body);
  whenNear(node, async () => {
    body.replaceChildren(...promptContent(await promptOf(number), data.settings).filter(Boolean));
    node.classList.add("ready");
  });
  return node;
}

export async function goTo(state, number) {
  if (!state.numbers.includes(number)) {
    state.clear();
    restart(state, state.data.prompts.map((_, each) => each));
  }
  const place = state.numbers.indexOf(number);
  if (place >= state.shown) showMore(state, place + 5);
  const node = document.getElementById(`prompt-${number + 1}`);
  history.replaceState(null, "", `#prompt-${number + 1}`);
  node.scrollIntoView();
  node.focus({ preventScroll: true });
  setTimeout(() => node.scrollIntoView(), 300); // what is above has its height by now
}

function toolbar(state) {
  const search = h("input", { type: "search", placeholder: "Search prompts and answers", "aria-label": "Search prompts and answers" });
  const facets = Object.entries(state.data.facets).filter(([, values]) => values.length > 1).map(([name, values]) => facet(name, values));
  let waiting = null, latest = 0;
  const apply = () => {
    clearTimeout(waiting);
    waiting = setTimeout(async () => {
      const asked = (latest += 1);
      const numbers = await matching(state, search.value.trim().toLowerCase(), chosenFacets(facets));
      if (asked === latest) restart(state, numbers);
    }, 150);
  };
  search.addEventListener("input", apply);
  search.addEventListener("change", apply);
  facets.forEach((each) => each.addEventListener("change", apply));
  state.clear = () => [search, ...facets.map((each) => each.querySelector("select"))].forEach((each) => { each.value = ""; });
  return h("div", { class: "toolbar", role: "search" }, search, facets, shadeChoice(),
    h("p", { class: "keys note" }, "Keys: ", [["/", "search"], ["j", "next prompt"], ["k", "previous"], ["u", "next uncertain token"], ["←→", "tokens"]].map(([key, does]) => [h("kbd", {}, key), ` ${does} `])));
}

function facet(name, values) {
  const options = [...values].sort((a, b) => b[1] - a[1]).map(([value, number]) => h("option", { value: JSON.stringify(value) }, `${value} (${count(number)})`));
  return h("label", { class: "facet", "data-name": name }, `${name} `, h("select", {}, h("option", { value: "" }, "any"), options));
}

const chosenFacets = (facets) => facets.map((each) => [each.dataset.name, each.querySelector("select").value]).filter(([, value]) => value);

async function matching({ data }, words, facets) {
  const found = [];
  for (let number = 0; number < data.prompts.length; number += 1) {
    if (!words && !facets.length) found.push(number);
    else {
      const prompt = await promptOf(number);
      if (hasWords(prompt, data.prompts[number].id, words) && hasFacets(prompt, facets)) found.push(number);
    }
  }
  return found;
}

function hasWords(prompt, id, words) {
  if (!words) return true;
  const asked = typeof prompt.ask === "string" ? prompt.ask : JSON.stringify(prompt.ask);
  return [id, asked, ...prompt.texts, ...prompt.answers.map((answer) => answer.error ?? "")].some((text) => text.toLowerCase().includes(words));
}

const hasFacets = (prompt, facets) => !facets.length || prompt.answers.some((answer) => facets.every(([name, value]) => JSON.stringify(valueAt(answer.meta, name)) === value));

// Of a key, or of the parts of a dotted one.
function valueAt(metadata, name) {
  const isIn = (object, key) => typeof object === "object" && object !== null && Object.hasOwn(object, key);
  if (isIn(metadata, name)) return metadata[name];
  return name.split(".").reduce((found, part) => (isIn(found, part) ? found[part] : undefined), metadata);
}

function shortcut(event, list) {
  if (event.target.closest("input, select, textarea, dialog") || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "/") {
    event.preventDefault();
    document.querySelector("input[type=search]").focus();
  }
  if (event.key === "j" || event.key === "k") step(list, event.key === "j" ? 1 : -1);
  if (event.key === "u") {
    const views = [...list.querySelectorAll(".tokens")];
    const view = views.find((each) => each.contains(document.activeElement)) ?? views.find((each) => each.getBoundingClientRect().bottom > 0);
    if (view) nextUncertain(view);
  }
}

function step(list, by) {
  const nodes = [...list.children], now = nodes.findIndex((node) => node.getBoundingClientRect().bottom > 80);
  const isAt = nodes[now] && Math.abs(nodes[now].getBoundingClientRect().top) < 90;
  const next = nodes[by < 0 ? now - (isAt ? 1 : 0) : now + (isAt ? 1 : 0)];
  next?.scrollIntoView();
  next?.focus({ preventScroll: true });
}
