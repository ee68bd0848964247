// Numbers and names for people.

export const count = (value) => value.toLocaleString("en-US");
export const percent = (value, digits = 0) => (value === null || value === undefined ? "–" : `${(100 * value).toFixed(digits)} %`);
export const fixed = (value, digits) => (value === null || value === undefined ? "–" : value.toFixed(digits).replace(/^-(0\.?0*)$/, "$1"));
export const many = (number, one, several = `${one}s`) => `${count(number)} ${number === 1 ? one : several}`;

// A probability with as many digits as it needs.
export function probability(share) {
  if (share === null) return "–";
  const value = 100 * share;
  if (value >= 99.95) return "> 99.9 %";
  if (value >= 10) return `${value.toFixed(1)} %`;
  return value >= 0.001 ? `${value.toPrecision(2)} %` : "< 0.001 %";
}

export function settingLabel({ strategy, values }) {
  const short = { temperature: "T", num_beams: "beams", length_penalty: "penalty" };
  const parts = Object.entries(values).map(([name, value]) => `${short[name] ?? name} ${value}`);
  return [strategy, ...parts].join(" · ");
}

// The answers that tokens were counted of, where these are not all; follows other words.
export const ofStride = ({ stride }) => (stride > 1 ? `, of one answer in ${count(stride)}` : "");

// A, B … Z, then numbers.
export const groupName = (rank) => (rank < 26 ? String.fromCharCode(65 + rank) : String(rank + 1));
