// A symmetric logarithmic axis is linear around 0.
const LINEAR_BELOW = 1e-3;
// Minimum distance of two labelled grid lines, in pixels.
const MIN_DISTANCE = 14;
// Maximum ratio of values that is readable on a linear axis.
const MAX_LINEAR_RATIO = 100;

const FORWARD = {
  linear: (value) => value,
  log: Math.log10,
  symlog: (value) => Math.sign(value) * Math.log10(1 + Math.abs(value) / LINEAR_BELOW),
};

/** Return the kind of scale for the reader's choice ("auto", "linear", "log") and the plot's default. */
function kindOfScale(choice, preferred, values) {
  if (choice === "linear") return "linear";
  if (choice === "log") return values.every((value) => value > 0) ? "log" : "symlog";
  if (preferred === "log") return "log";
  if (preferred !== "wide") return "linear";
  const sizes = values.map(Math.abs).filter((size) => size > 0);
  if (Math.max(...sizes, 0) <= MAX_LINEAR_RATIO * Math.min(...sizes)) return "linear";
  return values.every((value) => value > 0) ? "log" : "symlog";
}

/** Return a function from values to pixels, and the values of the grid lines. */
function makeScale(kind, [min, max], [from, to]) {
  const forward = FORWARD[kind];
  let low = forward(min);
  let high = forward(max);
  if (high - low < 1e-12) {
    const margin = kind === "linear" ? Math.abs(high) * 0.05 || 1 : 0.5;
    [low, high] = [low - margin, high + margin];
  }
  const toPixels = (value) => from + ((forward(value) - low) / (high - low)) * (to - from);
  const tolerance = 1e-9 * (high - low);
  const inside = (value) => forward(value) >= low - tolerance && forward(value) <= high + tolerance;
  return { toPixels, ticks: withoutOverlaps(ticksOf(kind, low, high).filter(inside), toPixels) };
}

/** Leave out values whose labels would overlap. */
function withoutOverlaps(values, toPixels) {
  const kept = [];
  for (const value of values) {
    if (kept.every((other) => Math.abs(toPixels(other) - toPixels(value)) >= MIN_DISTANCE)) kept.push(value);
  }
  return kept;
}

/** Return the labels of values, with as few digits as tell them apart. */
function labelsOf(values) {
  const labels = [4, 5, 6, 7, 8].map((digits) => values.map((value) => short(value, digits)));
  return labels.find((each) => new Set(each).size === values.length) ?? labels.at(-1);
}

function ticksOf(kind, low, high) {
  if (kind === "linear") return linearTicks(low, high, 5);
  if (kind === "log") return high - low > 1.2 ? decades(low, high) : linearTicks(10 ** low, 10 ** high, 5);
  const tops = [low, high].map((end) => Math.ceil(Math.log10(LINEAR_BELOW * 10 ** Math.abs(end))));
  const sizes = thinned(decades(Math.log10(LINEAR_BELOW), Math.max(...tops)), 4);
  return [0, ...sizes, ...sizes.map((size) => -size)];
}

function linearTicks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough);
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  return Array.from({ length: Math.max(0, last - first + 1) }, (_, index) => (first + index) * step);
}

function decades(low, high) {
  const first = Math.ceil(low - 1e-9);
  return thinned(Array.from({ length: Math.max(1, Math.floor(high + 1e-9) - first + 1) }, (_, i) => 10 ** (first + i)), 5);
}

/** Keep every n-th value so that at most `maxValues` remain. */
function thinned(values, maxValues) {
  const every = Math.ceil(values.length / maxValues);
  return values.filter((_, index) => index % every === 0);
}
