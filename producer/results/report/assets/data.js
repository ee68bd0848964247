// The chunks of the page: compressed JSON, unpacked when they are wanted. A few are kept.

const MOST_KEPT = 24;
const unpacked = new Map();

export async function chunkText(name) {
  const node = document.querySelector(`script[data-chunk="${name}"]`);
  const bytes = Uint8Array.from(atob(node.textContent), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

export function chunk(name) {
  const found = unpacked.get(name) ?? chunkText(name).then(JSON.parse);
  unpacked.delete(name);
  unpacked.set(name, found);
  if (unpacked.size > MOST_KEPT) unpacked.delete(unpacked.keys().next().value);
  return found;
}

// A prompt with its answers, and the texts that its tokens are numbers of.
export async function promptOf(number) {
  const firsts = await chunk("index");
  let place = firsts.length - 1;
  while (firsts[place] > number) place -= 1;
  const { first, texts, prompts } = await chunk(`prompts-${place}`);
  return { ...prompts[number - first], number, tokenTexts: texts };
}
