// Elements and texts. Data becomes text nodes and attributes alone, never markup, and none of it is invisible.

export function h(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : READ_ALOUD.has(name) ? visible(value) : value);
  }
  const shown = children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false);
  node.append(...shown.map((child) => (child instanceof Node || tag === "script" ? child : visible(child))));
  return node;
}

export const button = (label, onclick, props = {}) => h("button", { type: "button", ...props, onclick }, label);

// A section with its heading and a place in the contents.
export function section(id, title, ...children) {
  return h("section", { id, "aria-labelledby": `${id}-title` }, h("h2", { id: `${id}-title` }, title), ...children);
}

// A wide thing that is scrolled by itself, so that the page never is.
export const wide = (label, ...children) =>
  h("div", { class: "wide", tabindex: "0", role: "region", "aria-label": label }, ...children);

// Control characters, and all others that a reader does not see or that turn the direction of text, become visible, but
// for those that letters of their script or an emoji need: a joiner between two of these, a variation behind one.
const LETTER = String.raw`(?:(?!\p{DI})[^\x00-\x7f])`, VARIATIONS = String.raw`[\ufe00-\ufe0f\u180b-\u180d\u180f\u{e0100}-\u{e01ef}]`;
const INVISIBLE = new RegExp(
  String.raw`(?<=${LETTER}${VARIATIONS}?)[\u200c\u200d](?=${LETTER})|(?<=${LETTER})${VARIATIONS}|\ufe0f(?=\u20e3)|` +
  String.raw`((?![\t\n])\p{Cc}|\p{DI}|[\u2028\u2029\ufff9-\ufffb\p{Cs}])`, "gu");

// The attributes that a person reads.
const READ_ALOUD = new Set(["aria-label", "title", "placeholder"]);

export function visible(text) {
  return String(text).replace(INVISIBLE, (kept, character) => {
    if (character === undefined) return kept;
    const code = character.codePointAt(0);
    if (code < 32) return String.fromCharCode(0x2400 + code);
    return code === 127 ? "\u2421" : `⟨U+${code.toString(16).toUpperCase().padStart(4, "0")}⟩`;
  });
}

// Shows a part once it comes near the screen.
export function whenNear(node, show) {
  const observer = new IntersectionObserver((entries) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    observer.disconnect();
    show();
  }, { rootMargin: "800px" });
  observer.observe(node);
}
