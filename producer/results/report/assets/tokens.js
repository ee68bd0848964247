// An answer token by token: shaded by one of four figures, with a popover for mouse, keyboard and touch.

import { h, visible } from "./dom.js";
import { count, fixed, probability } from "./format.js";

const UNCERTAIN = 0.5;

export const SHADES = {
  probability: { label: "probability", heat: (token) => Math.min(1, token.nats / 5) }, // 0 for a figure that is null
  entropy: { label: "entropy", heat: (token) => Math.min(1, token.entropy / 3) },
  rank: { label: "rank", heat: (token) => Math.min(1, Math.log2(token.rank) / 6) },
  kept: { label: "kept", heat: (token) => Math.min(1, Math.log2(Math.max(1, token.kept)) / 10) },
};

const tokenViews = new Set();
let shadeName = "probability";

const scaled = (value, factor) => (value === null ? null : value / factor);

// The tokens of an answer as objects; a figure is null where the database has none that is finite.
export function tokensOf(columns, texts) {
  return columns.t.map((text, index) => ({
    position: index, text: texts[text], nats: scaled(columns.p[index], 1000), entropy: scaled(columns.e[index], 100),
    rank: columns.r[index], kept: columns.k[index], beam: columns.b?.[index] ?? null,
    alternatives: pairs(columns.a?.[index] ?? [], texts),
  }));
}

function pairs(flat, texts) {
  const found = [];
  for (let index = 0; index < flat.length; index += 2) found.push({ text: texts[flat[index]], nats: scaled(flat[index + 1], 1000) });
  return found;
}

const probabilityOf = (token) => (token.nats === null ? null : Math.exp(-token.nats));
const isUncertain = (token) => token.nats !== null && probabilityOf(token) < UNCERTAIN;
export const tokenName = (text) => (text === "" ? "(part of a character)" : visible(text).replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/ /g, "␣"));

export function tokenView(tokens, label, mark = -1) {
  const view = h("div", { class: "tokens", role: "listbox", "aria-label": label, "aria-orientation": "horizontal" });
  view.tokenList = tokens;
  view.append(...tokens.map((token, index) => tokenNode(token, index === mark)));
  view.firstChild?.setAttribute("tabindex", "0");
  view.addEventListener("keydown", (event) => moveByKey(view, event));
  view.addEventListener("focusin", (event) => showPopover(view, event.target));
  view.addEventListener("focusout", hidePopover);
  view.addEventListener("mouseover", (event) => showPopover(view, event.target));
  view.addEventListener("mouseleave", hidePopover);
  view.addEventListener("click", (event) => event.target.closest(".token") && focusToken(view, event.target.closest(".token")));
  shadeView(view);
  tokenViews.add(new WeakRef(view));
  return view;
}

function tokenNode(token, isMarked) {
  const text = token.text === "" ? "·" : visible(token.text).replace(/\n/g, "↵\n");
  return h("span", {
    class: isMarked ? "token departs" : "token", role: "option", tabindex: "-1", "aria-selected": "false",
    "aria-label": `${tokenName(token.text)}, ${probability(probabilityOf(token))}`,
  }, text);
}

export function shadeBy(name) {
  shadeName = name;
  for (const reference of tokenViews) {
    const view = reference.deref();
    if (view) shadeView(view);
    else tokenViews.delete(reference);
  }
}

function shadeView(view) {
  view.tokenList.forEach((token, index) => {
    view.children[index].style.setProperty("--heat", SHADES[shadeName].heat(token).toFixed(2));
  });
}

function focusToken(view, node) {
  view.querySelector('[tabindex="0"]')?.setAttribute("tabindex", "-1");
  node.setAttribute("tabindex", "0");
  node.focus({ preventScroll: true });
  const clamp = view.closest(".clamp");
  if (clamp && node.getBoundingClientRect().bottom > clamp.getBoundingClientRect().bottom) clamp.dispatchEvent(new Event("unfold"));
  const box = node.getBoundingClientRect();
  if (box.top < 60 || box.bottom > innerHeight - 200) node.scrollIntoView({ block: "center" });
  showPopover(view, node);
}

function moveByKey(view, event) {
  const nodes = [...view.children], at = nodes.indexOf(document.activeElement);
  const moves = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: nodes.length - 1 };
  if (event.key === "Escape") return hidePopover();
  if (event.key === "u") { event.stopPropagation(); return nextUncertain(view); }
  if (!(event.key in moves)) return;
  event.preventDefault();
  focusToken(view, nodes[Math.min(nodes.length - 1, Math.max(0, moves[event.key]))]);
}

// Goes to the next token of a view that was less likely than not, and on from the last one to the first.
export function nextUncertain(view) {
  const at = [...view.children].indexOf(view.querySelector('[tabindex="0"]'));
  const isFresh = !view.contains(document.activeElement);
  const after = view.tokenList.findIndex((token, index) => (isFresh ? index >= at : index > at) && isUncertain(token));
  const found = after >= 0 ? after : view.tokenList.findIndex(isUncertain);
  if (found >= 0) focusToken(view, view.children[found]);
  return found;
}

export const uncertainTokens = (tokens) => tokens.filter(isUncertain).length;

function showPopover(view, target) {
  const node = target.closest?.(".token");
  if (!node || !view.contains(node)) return;
  const popover = document.getElementById("popover");
  document.querySelector("[aria-describedby=popover]")?.removeAttribute("aria-describedby");
  node.setAttribute("aria-describedby", "popover");
  popover.replaceChildren(...popoverContent(view.tokenList[[...view.children].indexOf(node)]));
  popover.hidden = false;
  place(popover, node);
}

function popoverContent(token) {
  const facts = [
    ["probability", probability(probabilityOf(token))],
    ["rank", count(token.rank)],
    ["entropy", token.entropy === null ? "–" : `${fixed(token.entropy, 2)} nats`],
    ["kept", `${count(token.kept)} ${token.kept === 1 ? "token" : "tokens"}`],
    ["position", count(token.position)],
  ];
  if (token.beam !== null) facts.push(["from beam", String(token.beam)]);
  return [
    h("p", { class: "token-name" }, tokenName(token.text)),
    h("dl", {}, facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))),
    token.alternatives.length
      ? h("ol", { class: "alternatives" }, token.alternatives.map((other) => alternative(other, token.text)))
      : h("p", { class: "note" }, "no alternatives were kept; submit with --top-logprobs 5"),
  ];
}

function alternative(other, chosen) {
  const share = probabilityOf(other);
  const bar = h("span", { class: "bar" });
  bar.style.setProperty("--share", (share ?? 0).toFixed(4));
  return h("li", { class: other.text === chosen ? "chosen" : null }, h("code", {}, tokenName(other.text)), bar, h("span", {}, probability(share)));
}

// Below the token, or above it where there is no room, and always on the screen.
function place(popover, node) {
  const token = node.getClientRects()[0] ?? node.getBoundingClientRect(), box = popover.getBoundingClientRect();
  const left = Math.min(Math.max(8, token.left), document.documentElement.clientWidth - box.width - 8);
  const isBelow = token.bottom + box.height + 12 < innerHeight || token.top < box.height + 12;
  popover.style.left = `${Math.max(8, left)}px`;
  popover.style.top = `${isBelow ? token.bottom + 6 : token.top - box.height - 6}px`;
}

export function hidePopover() {
  document.getElementById("popover").hidden = true;
}

// The page and a dialog scroll by themselves too, to a token that keys went to.
function followToken() {
  const popover = document.getElementById("popover");
  if (popover.hidden) return;
  const node = document.querySelector("[aria-describedby=popover]"), box = node?.getBoundingClientRect();
  const seen = node?.closest("dialog")?.getBoundingClientRect() ?? { top: 0, bottom: innerHeight };
  if (!node || box.bottom < seen.top || box.top > seen.bottom) hidePopover();
  else place(popover, node);
}

// A scroll event does not bubble: only a capturing listener hears that of a dialog.
addEventListener("scroll", followToken, { passive: true, capture: true });
addEventListener("keydown", (event) => event.key === "Escape" && hidePopover());

// The choice of the shade, with its scale.
export function shadeChoice() {
  const options = Object.entries(SHADES).map(([name, { label }]) => h("option", { value: name }, label));
  return h("label", { class: "shade" }, "Shade tokens by ",
    h("select", { onchange: (event) => shadeBy(event.target.value) }, options),
    h("span", { class: "scale", "aria-hidden": "true" }, ["sure", 0, 0.25, 0.5, 0.75, 1, "unsure"].map((step) => {
      if (typeof step === "string") return step;
      const node = h("span", { class: "token" }, "\u00a0\u00a0");
      node.style.setProperty("--heat", step);
      return node;
    })));
}
