const COLOURS = Array.from({ length: 8 }, (_, index) => `var(--c${index})`);
const DASHES = ["", "2 3", "9 3 2 3", "4 2", "1 3", "12 4", "7 2 2 2 2 2"];
// Of what the others are compared with, such as the linear baseline.
const REFERENCE = { stroke: "var(--muted)", dash: "7 3" };
const HEIGHT = 200;
// The first plot has the most curves and fills a row.
const FIRST_HEIGHT = 300;
const MARGIN = { left: 48, right: 8, top: 8, bottom: 22 };
// The average width of a character of a label, in pixels.
const CHARACTER = 6.5;
// Names of more characters are slanted.
const SHORT_NAME = 4;
const MARK_RADIUS = 2.5;
// Curves with fewer points have a mark at each.
const FEW_POINTS = 40;
// With smoothing, this fraction of the raw values may lie outside of the plot at either end.
const OUTLIERS = 0.02;

const state = { smoothing: 0.6, scale: "auto", step: null, axis: null, hiddenRuns: new Set() };
const severalRuns = DATA.runs.length > 1;

/** Return a dash pattern. Indices of the same colour have different patterns. */
function dashOf(index) {
  return DASHES[(index + 3 * Math.floor(index / COLOURS.length)) % DASHES.length];
}

/** Exponential moving average with bias correction (arXiv 1412.6980, section 3). */
function smoothed(values, weight) {
  let sum = 0;
  let total = 0;
  return values.map((value) => {
    sum = weight * sum + (1 - weight) * value;
    total = weight * total + (1 - weight);
    return sum / total;
  });
}

/** Return the index of the nearest step. */
function nearestIndex(steps, step) {
  let low = 0;
  let high = steps.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (steps[middle] < step) low = middle;
    else high = middle;
  }
  return Math.abs(steps[low] - step) <= Math.abs(steps[high] - step) ? low : high;
}

function extent(values) {
  return values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
}

function quantiles(values, fraction) {
  const sorted = Float64Array.from(values).sort();
  return [sorted[Math.floor(fraction * (sorted.length - 1))], sorted[Math.ceil((1 - fraction) * (sorted.length - 1))]];
}

class Chart {
  constructor(plot, index, ends, height) {
    this.plot = plot;
    this.left = MARGIN.left;
    this.bottom = height - MARGIN.bottom;
    const longest = Math.max(0, ...plot.x_names.map((name) => name.length));
    this.isSlanted = longest > SHORT_NAME;
    this.height = height + (plot.x === "step" ? 0 : 16) + (this.isSlanted ? 0.6 * CHARACTER * longest : 0);
    this.ends = ends;
    this.hidden = new Set();
    this.svg = svg("svg", { id: `plot-${index}`, tabindex: 0, role: "img", "aria-label": this.summary() });
    this.svg.style.height = `${this.height}px`;
    this.legend = html("div", { class: "legend", role: "group", "aria-label": `Curves of ${plot.title}` });
    const title = html("h3", { id: `chart-${index}` }, plot.title);
    const caption = html("figcaption", {}, title, html("span", { class: "tools" }, ...exportButtons(this)));
    this.figure = html("figure", { class: "chart", "aria-labelledby": title.id }, caption, this.svg, this.legend);
    if (plot.hint) this.figure.append(html("p", { class: "hint" }, plot.hint));
    if (plot.note) this.figure.append(html("p", { class: "hint note bad" }, plot.note));
    this.makeLegend();
    this.listen();
    onResize(this.svg, () => this.draw());
  }

  summary() {
    const ends = this.plot.series.flatMap((series) => series.curves.filter((curve) => curve.values).map((curve) => {
      const run = severalRuns ? ` of ${DATA.runs[curve.run]}` : "";
      return `${series.label}${run} from ${short((curve.ends ?? curve.values)[0])} to ${short((curve.ends ?? curve.values).at(-1))}`;
    }));
    return `${this.plot.title}: ${ends.join("; ")}`;
  }

  style(series, run) {
    const index = this.plot.series.indexOf(series);
    const stroke = series.is_reference && !severalRuns ? REFERENCE.stroke : COLOURS[(severalRuns ? run : index) % COLOURS.length];
    const dash = severalRuns && this.plot.series.length === 1 ? run : index;
    return { stroke, "stroke-dasharray": series.is_reference ? REFERENCE.dash : dashOf(dash) };
  }

  makeLegend() {
    this.entries = this.plot.series.map((series) => {
      const stroke = severalRuns ? { ...this.style(series, 0), stroke: "var(--muted)" } : this.style(series, 0);
      const sample = svg("svg", { viewBox: "0 0 22 8", "aria-hidden": "true" });
      sample.append(svg("line", { x1: 0, x2: 22, y1: 4, y2: 4, "stroke-width": 2, ...stroke }));
      const values = html("span");
      const button = html("button", { type: "button", "aria-pressed": "true", title: `${series.key} in ${DATA.file}` }, sample, html("span", {}, series.label), values);
      button.addEventListener("click", () => this.toggle(series, button));
      this.legend.append(button);
      return { series, values };
    });
  }

  toggle(series, button) {
    if (!this.hidden.delete(series)) this.hidden.add(series);
    button.setAttribute("aria-pressed", String(!this.hidden.has(series)));
    this.draw();
  }

  /** Return the visible curves with their smoothed values. Validations have few values: only training is smoothed, but for schedules. */
  curves() {
    const found = [];
    for (const series of this.plot.series) {
      if (this.hidden.has(series)) continue;
      for (const curve of series.curves) {
        if (!curve.values || state.hiddenRuns.has(curve.run)) continue;
        const weight = this.plot.is_smoothed && series.key.startsWith("train/") ? state.smoothing : 0;
        found.push({ series, ...curve, weight, line: weight ? smoothed(curve.values, weight) : curve.values });
      }
    }
    return found;
  }

  range(curves) {
    return curves.flatMap((curve) => {
      const raw = [...(curve.low ?? curve.values), ...(curve.high ?? [])];
      return [...extent(curve.line), ...(curve.weight ? quantiles(raw, OUTLIERS) : extent(raw))];
    });
  }

  draw() {
    const width = this.svg.clientWidth;
    if (!width) return;
    this.drawn = this.curves();
    let ends = this.range(this.drawn);
    const kind = kindOfScale(state.scale, this.plot.scale, ends);
    if (kind === "log") ends = this.drawn.flatMap((curve) => [...curve.values, ...curve.line].filter((value) => value > 0));
    this.svg.setAttribute("viewBox", `0 0 ${width} ${this.height}`);
    this.svg.replaceChildren();
    const [min, max] = ends.length ? extent(ends) : [1, 2];
    this.y = makeScale(kind, [min, max], [this.bottom, MARGIN.top]);
    this.left = Math.max(MARGIN.left, ...labelsOf(this.y.ticks).map((label) => 12 + CHARACTER * label.length));
    this.x = makeScale("linear", this.ends, [this.left, width - MARGIN.right]);
    this.drawGrid(width);
    const box = { x: this.left - MARK_RADIUS, width: width - this.left - MARGIN.right + 2 * MARK_RADIUS, height: this.height };
    const inside = svg("svg", { ...box, viewBox: `${box.x} 0 ${box.width} ${box.height}` });
    const positive = kind === "log" ? (value) => value > 0 : () => true;
    for (const curve of this.drawn) inside.append(...this.marks(curve, positive));
    this.cursor = svg("g");
    this.svg.append(inside, this.cursor);
    this.showCursor();
  }

  drawGrid(width) {
    const labels = labelsOf(this.y.ticks);
    this.y.ticks.forEach((value, index) => {
      const y = this.y.toPixels(value);
      this.svg.append(svg("line", { class: "grid", x1: this.left, x2: width - MARGIN.right, y1: y, y2: y }));
      this.svg.append(svg("text", { x: this.left - 6, y: y + 4, "text-anchor": "end" }, labels[index]));
    });
    const title = this.plot.x === "step" ? { x: this.left - 6, y: this.height - 6, "text-anchor": "end" } : { x: (this.left + width) / 2, y: this.height - 6, "text-anchor": "middle" };
    this.svg.append(svg("text", title, this.plot.x));
    for (const [value, label] of this.positions()) {
      const x = this.x.toPixels(value);
      const y = this.bottom + 16;
      const anchor = this.isSlanted || (x > width - 30 && !this.plot.x_names.length) ? "end" : "middle";
      const place = this.isSlanted ? { transform: `translate(${x + 4} ${y - 4}) rotate(-40)` } : { x, y };
      this.svg.append(svg("text", { ...place, "text-anchor": anchor }, label));
    }
  }

  /** Return the values on the horizontal axis that have a label, with it. */
  positions() {
    const names = this.plot.x_names;
    if (names.length) {
      const every = this.isSlanted ? 1 : Math.ceil((CHARACTER * (SHORT_NAME - 1)) / (this.x.toPixels(1) - this.x.toPixels(0)));
      return names.map((name, index) => [index, name]).filter(([index]) => index % every === 0);
    }
    const [first, last] = this.ends;
    const ticks = first === last ? [first] : this.x.ticks.filter((value) => this.plot.x !== "step" || Number.isInteger(value));
    const labels = labelsOf(ticks);
    return ticks.map((value, index) => [value, labels[index]]);
  }

  marks(curve, positive) {
    const style = this.style(curve.series, curve.run);
    const marks = [];
    if (curve.low) {
      const upper = this.points(curve.steps, curve.high, positive);
      const lower = this.points(curve.steps, curve.low, positive).reverse();
      marks.push(svg("path", { class: "band", fill: style.stroke, d: path([...upper, ...lower]) }));
    } else if (curve.weight) {
      marks.push(svg("path", { class: "raw", stroke: style.stroke, d: path(this.points(curve.steps, curve.values, positive)) }));
    }
    const line = this.points(curve.steps, curve.line, positive);
    if (!this.plot.x_names.length) marks.push(svg("path", { class: "line", ...style, d: path(line) }));
    if (line.length === 1 || (line.length < FEW_POINTS && !curve.weight)) {
      marks.push(...line.map(([x, y]) => svg("circle", { cx: x, cy: y, r: MARK_RADIUS, fill: style.stroke })));
    }
    return marks;
  }

  points(steps, values, positive) {
    const pairs = steps.map((step, index) => [step, values[index]]).filter(([, value]) => positive(value));
    return pairs.map(([step, value]) => [this.x.toPixels(step), this.y.toPixels(value)]);
  }

  listen() {
    const at = (event) => {
      const box = this.svg.getBoundingClientRect();
      const position = (event.clientX - box.left - this.left) / (box.width - this.left - MARGIN.right);
      const [first, last] = this.ends;
      setCursor(this.stepNear(first + position * (last - first)), this.plot.x);
    };
    this.svg.addEventListener("pointermove", at);
    this.svg.addEventListener("pointerdown", at);
    this.svg.addEventListener("pointerleave", () => setCursor(null));
    this.svg.addEventListener("blur", () => setCursor(null));
    this.svg.addEventListener("keydown", (event) => this.onKey(event));
  }

  /** Return the steps at which this plot has values. */
  steps() {
    const all = this.drawn.flatMap((curve) => curve.steps);
    return [...new Set(all)].sort((a, b) => a - b);
  }

  stepNear(step) {
    const steps = this.steps();
    return steps.length ? steps[nearestIndex(steps, step)] : null;
  }

  onKey(event) {
    const steps = this.steps();
    const here = state.step === null ? -1 : nearestIndex(steps, state.step);
    const targets = { ArrowLeft: Math.max(here - 1, 0), ArrowRight: Math.min(here + 1, steps.length - 1), Home: 0, End: steps.length - 1, Escape: -1 };
    if (!(event.key in targets) || !steps.length) return;
    event.preventDefault();
    setCursor(steps[targets[event.key]] ?? null, this.plot.x);
    byId("curve-readout").textContent = state.step === null ? "" : `${this.plot.title}, ${this.position()}: ${this.readout().join(", ")}`;
  }

  readout() {
    return this.withValues().map((curve) => {
      const run = severalRuns ? ` of ${DATA.runs[curve.run]}` : "";
      return `${curve.series.label}${run} ${short(this.valueAt(curve))}${curve.weight ? " smoothed" : ""}`;
    });
  }

  /** Whether the cursor is on the horizontal axis of this plot. */
  get hasCursor() {
    return state.step !== null && state.axis === this.plot.x;
  }

  /** Return where the cursor is. */
  position() {
    return this.plot.x_names[state.step] ?? `${this.plot.x} ${this.plot.x === "step" ? state.step : short(state.step)}`;
  }

  /** Return the curves that have a value at the cursor, or all without one. */
  withValues() {
    const covers = (steps) => steps[0] <= state.step && state.step <= steps.at(-1);
    const isNamed = this.plot.x_names.length > 0; // each value stands for itself
    return this.drawn.filter(({ steps }) => !this.hasCursor || (isNamed ? steps.includes(state.step) : covers(steps)));
  }

  valueAt(curve) {
    return curve.line[this.hasCursor ? nearestIndex(curve.steps, state.step) : curve.line.length - 1];
  }

  /** Mark the step at the cursor, and show the values there (or the last values) in the legend. */
  showCursor() {
    if (!this.drawn) return;
    this.cursor.replaceChildren();
    if (this.hasCursor) {
      const x = this.x.toPixels(state.step);
      this.cursor.append(svg("line", { class: "cursor", x1: x, x2: x, y1: MARGIN.top, y2: this.bottom }));
      const anchor = x > this.svg.clientWidth / 2 ? "end" : "start";
      this.cursor.append(svg("text", { x: x + (anchor === "end" ? -5 : 5), y: MARGIN.top + 9, "text-anchor": anchor }, this.position()));
    }
    for (const { series, values } of this.entries) {
      const curves = this.withValues().filter((curve) => curve.series === series);
      values.replaceChildren(...curves.flatMap((curve) => {
        const value = html("b", {}, short(this.valueAt(curve)));
        if (severalRuns) value.style.color = this.style(series, curve.run).stroke;
        return [" ", value];
      }), curves.some(({ weight }) => weight) ? html("i", {}, " smoothed") : "");
    }
  }
}

function path(points) {
  return points.map(([x, y], index) => `${index ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
}

const charts = [];

function setCursor(step, axis = null) {
  if (step === state.step && axis === state.axis) return;
  Object.assign(state, { step, axis });
  charts.forEach((chart) => chart.showCursor());
}

function redraw() {
  charts.forEach((chart) => chart.draw());
}

function makeRunLegend() {
  if (!severalRuns) return byId("run-legend").remove();
  DATA.runs.forEach((name, run) => {
    const sample = svg("svg", { viewBox: "0 0 22 8", "aria-hidden": "true" });
    sample.append(svg("line", { x1: 0, x2: 22, y1: 4, y2: 4, "stroke-width": 3, stroke: COLOURS[run % COLOURS.length], "stroke-dasharray": dashOf(run) }));
    const button = html("button", { type: "button", "aria-pressed": "true" }, sample, html("span", { class: "name" }, name));
    button.addEventListener("click", () => {
      if (!state.hiddenRuns.delete(run)) state.hiddenRuns.add(run);
      button.setAttribute("aria-pressed", String(!state.hiddenRuns.has(run)));
      redraw();
    });
    byId("run-legend").append(button);
  });
  return undefined;
}

/** Return the ends of a plot's horizontal axis: those of all steps, or its own. */
function endsOf(plot) {
  if (plot.x_names.length) return [-0.5, plot.x_names.length - 0.5];
  const plots = plot.x === "step" ? DATA.plots.filter(({ x }) => x === "step") : [plot];
  return extent(plots.flatMap(({ series }) => series.flatMap(({ curves }) => curves.flatMap((curve) => curve.steps ?? []))));
}

function makeCharts() {
  const isFirstWide = byId("charts").classList.contains("first-wide");
  DATA.plots.forEach((plot, index) => {
    const chart = new Chart(plot, index, endsOf(plot), isFirstWide && index === 0 ? FIRST_HEIGHT : HEIGHT);
    charts.push(chart);
    byId("charts").append(chart.figure);
  });
  makeRunLegend();
  byId("smoothing")?.addEventListener("input", ({ target }) => {
    state.smoothing = Number(target.value);
    byId("smoothing-value").textContent = state.smoothing.toFixed(2);
    redraw();
  });
  byId("scale")?.addEventListener("change", ({ target }) => {
    state.scale = target.value;
    redraw();
  });
}

if (byId("charts")) makeCharts();
