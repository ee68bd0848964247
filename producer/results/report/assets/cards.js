// A prompt with its answers: equal answers are one card, any card can be the one that the others are compared with.

import { h, button } from "./dom.js";
import { count, fixed, groupName, many, settingLabel } from "./format.js";
import { difference, wordsOf } from "./diff.js";
import { nextUncertain, tokensOf, tokenView, uncertainTokens } from "./tokens.js";
import { tree } from "./tree.js";

const CARDS_AT_ONCE = 12;

export function promptContent(prompt, settings) {
  const groups = groupsOf(prompt), grid = h("div", { class: "cards" });
  const state = { base: null, cards: [], prompt, settings };
  const more = button("Show more answers", () => show());
  const show = () => {
    const next = groups.slice(state.cards.length, state.cards.length + CARDS_AT_ONCE).map((group) => answerCard(group, groups, state));
    state.cards.push(...next);
    grid.append(...next.map((card) => card.node));
    more.hidden = state.cards.length >= groups.length;
  };
  show();
  return [asking(prompt.ask), failedAnswers(prompt), groups.length > 1 ? treeButton(prompt, groups) : null, grid, more];
}

// Equal answers, the most frequent first.
function groupsOf(prompt) {
  const found = prompt.texts.map((text, number) => ({ text, number, answers: [] }));
  for (const answer of prompt.answers) if (answer.g !== undefined) found[answer.g].answers.push(answer);
  const sorted = found.filter((group) => group.answers.length).sort((a, b) => b.answers.length - a.answers.length || a.number - b.number);
  return sorted.map((group, rank) => ({ ...group, rank, total: prompt.answers.filter((answer) => answer.g !== undefined).length }));
}

function asking(ask) {
  if (typeof ask === "string") {
    const turns = chatMlTurns(ask);
    return turns ? asking(turns) : clamped(h("div", { class: "ask text" }, ask), "prompt");
  }
  return clamped(h("div", { class: "chat" }, (ask ?? []).map((message) => h("div", { class: `bubble ${["user", "assistant", "system", "tool"].includes(message.role) ? message.role : "other"}` },
    h("span", { class: "role" }, message.role), h("div", { class: "text" }, messageText(message))))), "chat");
}

// The messages of a prompt that is ChatML from its first character to its last; null for any other text. The turn that the
// model is to write has nothing in it yet.
export function chatMlTurns(text) {
  const turn = /<\|im_start\|>([\w-]{1,40})\n([^]*?)(?:<\|im_end\|>\n?|$)/y, found = [];
  while (turn.lastIndex < text.length) {
    const match = turn.exec(text);
    if (!match || match[2].includes("<|im_start|>")) return null;
    found.push({ role: match[1], content: match[2] });
    if (turn.lastIndex === text.length) break;
  }
  if (found.length && !found.at(-1).content) found.pop();
  return found.length ? found : null;
}

function messageText(message) {
  const { role, content, ...rest } = message;
  const said = typeof content === "string" ? content : content === null || content === undefined ? "" : Array.isArray(content) && content.every((part) => typeof part.text === "string") ? content.map((part) => part.text).join("\n") : JSON.stringify(content, null, 1);
  return Object.keys(rest).length ? `${said}\n${JSON.stringify(rest, null, 1)}`.trim() : said;
}

// A long part is cut, with a button that shows all of it.
export function clamped(node, name) {
  const box = h("div", { class: "clamp" }, node);
  const toggle = button(`Show the whole ${name}`, () => {
    const isOpen = box.classList.toggle("open");
    toggle.textContent = isOpen ? `Show less of the ${name}` : `Show the whole ${name}`;
    toggle.setAttribute("aria-expanded", String(isOpen));
  }, { class: "link", "aria-expanded": "false", hidden: true });
  new ResizeObserver(() => {
    if (box.classList.contains("open")) return;
    toggle.hidden = box.scrollHeight <= box.clientHeight + 4;
    box.classList.toggle("cut", !toggle.hidden);
  }).observe(box);
  box.addEventListener("unfold", () => box.classList.contains("open") || toggle.click());
  return h("div", {}, box, toggle);
}

function failedAnswers(prompt) {
  const failed = prompt.answers.filter((answer) => answer.g === undefined);
  if (!failed.length) return null;
  return h("ul", { class: "unanswered" }, failed.slice(0, 20).map((answer) => h("li", {},
    h("strong", {}, answer.id), ` ${answer.state}${answer.code ? `, ${answer.code}` : ""} `, answer.error ? h("span", { class: "text" }, answer.error) : null)),
    failed.length > 20 ? h("li", {}, `and ${count(failed.length - 20)} more`) : null);
}

function treeButton(prompt, groups) {
  const place = h("div"), toggle = button("Show the tree of all answers", () => {
    const isOpen = place.childElementCount > 0;
    place.replaceChildren(...(isOpen ? [] : [answerTree(prompt, groups)]));
    toggle.textContent = isOpen ? "Show the tree of all answers" : "Hide the tree of all answers";
    toggle.setAttribute("aria-expanded", String(!isOpen));
  }, { class: "link tree-toggle", "aria-expanded": "false" });
  return h("div", {}, toggle, place);
}

const tokensOfGroup = (group) => group.answers.find((answer) => answer.tok)?.tok ?? null;

function answerTree(prompt, groups) {
  const hasTokens = groups.every(tokensOfGroup);
  return tree(groups.map((group) => {
    const texts = hasTokens ? tokensOfGroup(group).t.map((number) => prompt.tokenTexts[number]) : wordsOf(group.text);
    return { parts: texts, texts, weight: group.answers.length, label: `${groupName(group.rank)} · ${many(group.answers.length, "answer")}` };
  }), `All answers, by ${hasTokens ? "token" : "word"}`);
}

// The hypotheses of a beam search share the beginning of their token ids.
function beamTree(hypotheses) {
  const hasIds = hypotheses.every((each) => each.ids);
  return tree(hypotheses.map((each) => {
    const words = each.texts ?? wordsOf(each.text);
    return { parts: hasIds ? each.ids : words, texts: words, weight: 1, label: `score ${fixed(each.score, 4)} · ${many(each.length, "token")} · ${each.end}` };
  }), `${many(hypotheses.length, "finished hypothesis", "finished hypotheses")}, the best first`);
}

function answerCard(group, groups, state) {
  const { prompt, settings } = state, [first] = group.answers;
  const body = h("div"), name = groupName(group.rank);
  let shown = group.answers.find((answer) => answer.tok) ?? first;
  const card = { group, redraw };
  function redraw() {
    body.replaceChildren(clamped(answerBody(group, shown, state), "answer"));
  }
  const chosen = group.answers.filter((answer) => answer.tok);
  const beams = group.answers.find((answer) => answer.hyp);
  card.node = h("article", { class: "card", "aria-label": `Answer ${name}` },
    h("header", {}, h("span", { class: `badge hue-${group.rank % 8}` }, name),
      h("strong", {}, group.total > 1 ? `${count(group.answers.length)} of ${count(group.total)}` : first.id), facts(group, prompt)),
    settingChips(group, settings),
    body,
    beams ? h("details", { class: "beams" }, h("summary", {}, `Beam tree: ${many(beams.hyp.length, "hypothesis", "hypotheses")}`), beamTree(beams.hyp)) : null,
    h("footer", {},
      shown.tok ? uncertainButton(shown, prompt, body) : null,
      groups.length > 1 ? button("Compare others with this", () => compareWith(card, state), { class: "small base-button", "aria-pressed": "false" }) : null,
      groups.length > 1 ? button("Side by side", () => sideBySide(card, state, groups), { class: "small" }) : null,
      chosen.length > 1 ? tokensChoice(chosen, (answer) => { shown = answer; redraw(); }) : null,
      metadata(first)));
  redraw();
  return card;
}

function facts(group, prompt) {
  const [first] = group.answers, parts = [many(first.len, "token"), first.end];
  if (first.lp !== undefined) parts.push(`${fixed(first.lp, 2)} per token`);
  if (first.score !== undefined) parts.push(`score ${fixed(first.score, 3)}`);
  if (prompt.json) parts.push(prompt.json[group.number] ? "valid JSON" : "not JSON");
  return h("span", { class: "facts" }, parts.join(" · "));
}

function settingChips(group, settings) {
  const counts = new Map();
  for (const answer of group.answers) counts.set(answer.s, (counts.get(answer.s) ?? 0) + 1);
  const chips = [...counts].map(([setting, number]) => h("li", {}, settingLabel(settings[setting]) + (number > 1 ? ` × ${number}` : "")));
  if (chips.length <= 4) return h("ul", { class: "chips" }, chips);
  return h("details", { class: "chips-more" }, h("summary", {}, `${many(chips.length, "setting")} gave it`), h("ul", { class: "chips" }, chips));
}

function answerBody(group, answer, { base, prompt }) {
  if (base && base !== group) return comparison(base.text, group.text);
  if (answer.tok) return tokenView(tokensOf(answer.tok, prompt.tokenTexts), `Tokens of answer ${groupName(group.rank)}`);
  return h("div", { class: "text" }, group.text || h("span", { class: "note" }, "(an empty text)"));
}

// A text against another, its first departure marked.
export function comparison(base, other) {
  const tags = { same: "span", added: "ins", removed: "del" };
  let isFirst = true;
  return h("div", { class: "text diff" }, difference(base, other).map(([kind, text]) => {
    const mark = kind !== "same" && isFirst ? h("span", { class: "departure" }, "first departure") : null;
    if (mark) isFirst = false;
    return [mark, h(tags[kind], {}, text)];
  }));
}

function compareWith(card, state) {
  state.base = state.base === card.group ? null : card.group;
  for (const each of state.cards) {
    each.node.classList.toggle("base", state.base === each.group);
    each.node.querySelector(".base-button").setAttribute("aria-pressed", String(state.base === each.group));
    each.redraw();
  }
}

function uncertainButton(answer, prompt, body) {
  const number = uncertainTokens(tokensOf(answer.tok, prompt.tokenTexts));
  if (!number) return null;
  return button(`Next uncertain (${number})`, () => {
    const view = body.querySelector(".tokens");
    if (view) nextUncertain(view);
  }, { class: "small uncertain" });
}

function tokensChoice(answers, choose) {
  const options = answers.map((answer, index) => h("option", { value: index }, answer.id + (answer.n ? ` [${answer.n}]` : "")));
  return h("label", { class: "small" }, "tokens of ", h("select", { onchange: (event) => choose(answers[event.target.value]) }, options));
}

function metadata(answer) {
  const about = { custom_id: answer.id, seed: answer.seed, ...(answer.meta ?? {}) };
  return h("details", { class: "metadata" }, h("summary", {}, "About"), h("dl", {}, Object.entries(about).map(([name, value]) =>
    h("div", {}, h("dt", {}, name), h("dd", {}, typeof value === "string" ? value : JSON.stringify(value))))));
}

// Two answers in a dialog, their tokens beside each other.
function sideBySide(card, { base, prompt }, groups) {
  const other = base && base !== card.group ? base : groups.find((group) => group !== card.group);
  const pair = [other, card.group], texts = pair.map((group) => tokensOfGroup(group)), haveTokens = texts.every(Boolean);
  const parts = texts.map((columns, index) => (haveTokens ? columns.t.map((number) => prompt.tokenTexts[number]) : wordsOf(pair[index].text)));
  let first = 0;
  while (first < parts[0].length && parts[0][first] === parts[1][first]) first += 1;
  const dialog = h("dialog", { "aria-label": "Two answers side by side" },
    h("header", {}, h("h3", {}, `Answers ${pair.map((group) => groupName(group.rank)).join(" and ")} part at ${haveTokens ? "position" : "word"} ${first}`), button("Close", () => dialog.close())),
    h("div", { class: "pair" }, pair.map((group, index) => h("div", { role: "group", "aria-label": `Answer ${groupName(group.rank)}` },
      h("p", {}, h("span", { class: `badge hue-${group.rank % 8}` }, groupName(group.rank)), ` ${many(group.answers.length, "answer")}`),
      texts[index] ? tokenView(tokensOf(texts[index], prompt.tokenTexts), `Tokens of answer ${groupName(group.rank)}`, haveTokens ? first : -1) : h("div", { class: "text" }, group.text)))));
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.append(document.getElementById("popover"));
  dialog.addEventListener("close", () => document.body.append(document.getElementById("popover") ?? dialog.querySelector("#popover")));
  dialog.showModal();
}
