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

const BACK = {
  log: (value) => 10 ** value,
  symlog: (value) => Math.sign(value) * LINEAR_BELOW * (10 ** Math.abs(value) - 1),
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
  const [min, max] = [low, high].map(BACK[kind]);
  const negative = decades(Math.max(-max, LINEAR_BELOW), -min).map((size) => -size);
  const powers = kind === "log" ? decades(min, max) : [...decades(Math.max(min, LINEAR_BELOW), max), ...negative];
  const isNarrow = kind === "log" && high - low <= 1.2;
  return isNarrow || powers.length < 2 ? linearTicks(min, max, 5) : [0, ...powers];
}

function linearTicks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough);
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  return Array.from({ length: Math.max(0, last - first + 1) }, (_, index) => (first + index) * step);
}

/** Return up to five powers of ten between two values. */
function decades(low, high) {
  const first = Math.ceil(Math.log10(low) - 1e-9);
  const length = Math.max(0, Math.floor(Math.log10(high) + 1e-9) - first + 1);
  const every = Math.ceil(length / 5);
  return Array.from({ length }, (_, index) => 10 ** (first + index)).filter((_, index) => index % every === 0);
}
