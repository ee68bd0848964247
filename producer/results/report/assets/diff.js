// Two texts word by word: the words they share in order, those that only one has, and where they part.

const MOST_WORDS = 1200;

// The words of a text, each with the space before it.
export const wordsOf = (text) => text.match(/\s*\S+|\s+$/g) ?? [];

// [kind, text] parts of `other` against `base`: "same", "added", "removed".
export function difference(base, other) {
  const left = wordsOf(base), right = wordsOf(other);
  let begin = 0;
  while (begin < left.length && begin < right.length && left[begin] === right[begin]) begin += 1;
  let end = 0;
  while (end < left.length - begin && end < right.length - begin && left.at(-1 - end) === right.at(-1 - end)) end += 1;
  const middle = between(left.slice(begin, left.length - end), right.slice(begin, right.length - end));
  return [["same", right.slice(0, begin).join("")], ...tidy(middle), ["same", right.slice(right.length - end).join("")]].filter(([, text]) => text);
}

function between(left, right) {
  if (left.length > MOST_WORDS || right.length > MOST_WORDS) return [["removed", left.join("")], ["added", right.join("")]];
  const lengths = commonLengths(left, right), parts = [];
  let i = 0, j = 0;
  while (i < left.length || j < right.length) {
    if (i < left.length && j < right.length && left[i] === right[j]) { put(parts, "same", right[j]); i += 1; j += 1; }
    else if (i < left.length && (j >= right.length || lengths[i + 1][j] >= lengths[i][j + 1])) { put(parts, "removed", left[i]); i += 1; }
    else { put(parts, "added", right[j]); j += 1; }
  }
  return parts;
}

// The length of the longest common part of left[i:] and right[j:].
function commonLengths(left, right) {
  const lengths = Array.from({ length: left.length + 1 }, () => new Uint16Array(right.length + 1));
  for (let i = left.length - 1; i >= 0; i -= 1)
    for (let j = right.length - 1; j >= 0; j -= 1)
      lengths[i][j] = left[i] === right[j] ? lengths[i + 1][j + 1] + 1 : Math.max(lengths[i + 1][j], lengths[i][j + 1]);
  return lengths;
}

function put(parts, kind, text) {
  if (parts.length && parts.at(-1)[0] === kind) parts.at(-1)[1] += text;
  else parts.push([kind, text]);
}

// Words that happen to be common between two larger changes are part of one change; in each, the removed text comes first.
function tidy(parts) {
  let blocks = parts.map(([kind, text]) => (kind === "same" ? { same: text, removed: "", added: "" } : { same: "", removed: "", added: "", [kind]: text }));
  for (let crumbs = [true]; crumbs.length;) {
    blocks = joined(blocks);
    const size = (block) => (block ? Math.max(block.removed.length, block.added.length) : 0);
    crumbs = blocks.filter((block, index) => block.same && block.same.length <= Math.min(size(blocks[index - 1]), size(blocks[index + 1])));
    for (const block of crumbs) Object.assign(block, { same: "", removed: block.same, added: block.same });
  }
  return blocks.flatMap(({ same, removed, added }) => [["same", same], ["removed", removed], ["added", added]]);
}

function joined(blocks) {
  const found = [];
  for (const block of blocks) {
    const last = found.at(-1);
    if (last && Boolean(last.same) === Boolean(block.same)) for (const kind of ["same", "removed", "added"]) last[kind] += block[kind];
    else found.push({ ...block });
  }
  return found;
}
