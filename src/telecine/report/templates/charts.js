// The charts of a page, drawn by plotly. All that a reader chooses is in `chosen`, and `redraw` draws it.
const NUM_COLOURS = 8;
const COLOURS = ["c0", "c1", "c2", "c3", "c4", "c5", "c6", "c7", "muted", "line", "bad", "surface", "text"];
const DASHES = ["solid", "dot", "dashdot", "dash", "longdash", "4px 2px", "12px 4px"];
// What the others are compared with, such as the linear baseline.
const REFERENCE_DASH = "7px 3px";
const HEIGHT = 230;
// The first chart of a run has the most curves and fills a row.
const FIRST_HEIGHT = 330;
// Curves with fewer points have a mark at each.
const FEW_POINTS = 40;
// With smoothing, this fraction of the logged values may lie outside of the chart at either end.
const OUTLIERS = 0.02;
// Maximum ratio of values that is readable on a linear axis.
const MAX_LINEAR_RATIO = 100;

const severalRuns = DATA.runs.length > 1;
const chosen = { smoothing: 0.6, scale: "auto", hiddenRuns: [], hiddenSeries: [], ranges: {} };
const colours = {};
const wholeRanges = {};
// A card for each chart: its elements on the page, and whether they are drawn.
const cards = [];
// Called by each `redraw`: they show the choices in buttons and sliders.
const controls = [];
// The number of times that something else was chosen, and the charts were drawn again.
let redraws = 0;

/** Show text as it is: plotly reads tags in names, and names may be anyone's. */
function plain(text) {
  return String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

/** Read the colours of the style sheet in the theme that is shown, for plotly, which knows no style sheet. */
function readColours() {
  const probe = html("span");
  document.body.append(probe);
  for (const name of COLOURS) {
    probe.style.color = `var(--${name})`;
    colours[name] = getComputedStyle(probe).color;
  }
  probe.remove();
}

/** Return the smallest and the largest of values, of which there may be more than a function has arguments. */
function extent(values) {
  return values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
}

/** Format a number with four significant digits, like `short` of html.py. */
function short(value) {
  return String(Number(value.toPrecision(4))).replaceAll("-", "\u2212");
}

function toggle(list, item) {
  const index = list.indexOf(item);
  if (index < 0) list.push(item);
  else list.splice(index, 1);
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

// ---- one chart: its traces and its layout, as plotly reads them

function seriesName(chart, series) {
  return `${chart.title}: ${series.label}`;
}

/** Colours tell runs apart, and dashes tell series apart; with one run, colours tell series apart. */
function lineStyle(chart, series, run) {
  const index = chart.series.indexOf(series);
  if (series.is_front) return { colour: "muted", dash: REFERENCE_DASH };
  if (series.is_reference) return { colour: severalRuns ? `c${run % NUM_COLOURS}` : "muted", dash: REFERENCE_DASH };
  const colour = severalRuns ? run : index;
  const number = severalRuns && chart.series.length === 1 ? run : index;
  // Curves 0, 8 and 16 share a colour. Their dashes are 4 apart, because neighbours look alike: one by their number, as
  // there are 7 dashes, and 3 more for each time that all colours were used before.
  const timesUsed = Math.floor(number / NUM_COLOURS);
  return { colour: `c${colour % NUM_COLOURS}`, dash: DASHES[(number + 3 * timesUsed) % DASHES.length] };
}

/** Return the curves that are shown. */
function shownCurves(chart) {
  const curves = [];
  for (const series of chart.series) {
    if (chosen.hiddenSeries.includes(seriesName(chart, series))) continue;
    for (const curve of series.curves) {
      if (!curve.values.length || chosen.hiddenRuns.includes(curve.run)) continue;
      const weight = series.is_smoothed ? chosen.smoothing : 0;
      const line = weight ? smoothed(curve.values, weight) : curve.values;
      curves.push({ series, curve, weight, line });
    }
  }
  return curves;
}

/** Return whether the vertical axis is logarithmic. Such an axis leaves out values that are not positive. */
function isLogarithmic(chart, values) {
  const positive = values.filter((value) => value > 0);
  if (chosen.scale === "linear" || !positive.length) return false;
  if (chosen.scale === "log" || chart.scale === "log") return true;
  const [low, high] = extent(positive);
  return chart.scale === "wide" && high > MAX_LINEAR_RATIO * low;
}

/** Return where a value is on the horizontal axis, in plotly's units. */
function position(chart, x) {
  return chart.x.scale === "log" ? Math.log10(x) : x;
}

/** Return the name of a curve: that of its series and, of several runs, that of its run. A front has no run. */
function curveName({ label, is_front: isFront }, run) {
  return severalRuns && !isFront ? `${label}, ${DATA.runs[run]}` : label;
}

/** Return whether a value of the horizontal axis is in the zoomed part. */
function isInRange(chart, x) {
  const [first, last] = chosen.ranges[chart.x.label] ?? [-Infinity, Infinity];
  const place = position(chart, x);
  return first <= place && place <= last;
}

/** Return the values that the vertical axis covers, in the zoomed part: lines, and logged values without outliers. */
function valuesInside(chart, curves) {
  return curves.flatMap(({ curve, weight, line }) => {
    const inside = (values) => values.filter((_, index) => isInRange(chart, curve.steps[index]));
    const logged = [curve.values, curve.low, curve.high].flatMap(inside).sort((a, b) => a - b);
    const margin = weight ? Math.floor(OUTLIERS * logged.length) : 0;
    return [...inside(line), ...logged.slice(margin, logged.length - margin)];
  });
}

function verticalAxis(chart, curves) {
  const values = valuesInside(chart, curves);
  const isLog = isLogarithmic(chart, values);
  const ends = isLog ? values.filter((value) => value > 0).map(Math.log10) : values;
  if (!ends.length) return { type: "linear", range: [0, 1], hides: false };
  const [low, high] = extent(ends);
  const margin = 0.05 * (high - low) || 0.05 * Math.abs(high) || 1;
  const hides = isLog && curves.some(({ curve }) => curve.values.some((value) => value <= 0));
  return { type: isLog ? "log" : "linear", range: [low - margin, high + margin], hides };
}

function tracesOf(chart, shown, axis) {
  const traces = [];
  for (const { series, curve, weight, line } of shown) {
    const { colour, dash } = lineStyle(chart, series, curve.run);
    const color = colours[colour];
    const name = plain(curveName(series, curve.run));
    const quiet = { hoverinfo: "skip", showlegend: false, mode: "lines" };
    // On a logarithmic axis plotly draws lines to values that are not positive, down to the edge: null is a gap.
    const drawn = (values) => axis.type === "log" ? values.map((value) => value > 0 ? value : null) : values;
    if (curve.low.length) {
      traces.push({ ...quiet, x: curve.steps, y: curve.low, line: { width: 0 } });
      const fillcolor = color.replace("rgb(", "rgba(").replace(")", ", 0.16)");
      traces.push({ ...quiet, x: curve.steps, y: curve.high, line: { width: 0 }, fill: "tonexty", fillcolor });
    } else if (weight) {
      traces.push({ ...quiet, x: curve.steps, y: drawn(curve.values), opacity: 0.3, line: { color, width: 1 } });
    }
    if (series.is_front) {
      traces.push({ x: curve.steps, y: line, ...quiet, line: { color, dash, width: 1.25, shape: "hv" } });
      continue;
    }
    const isFew = curve.steps.length < FEW_POINTS && !weight;
    let mode = isFew || curve.steps.length === 1 ? "lines+markers" : "lines";
    if (chart.x.names.length) mode = "markers";
    traces.push({
      x: curve.steps,
      y: drawn(line),
      name: weight ? `${name}, smoothed` : name,
      mode,
      line: { color, dash, width: 1.75 },
      marker: { color, size: chart.series.some((one) => one.is_front) ? 9 : 5 },
      hovertemplate: "%{y:.4g}",
    });
  }
  const events = chart.x.is_steps ? DATA.events.filter(({ run }) => !chosen.hiddenRuns.includes(run)) : [];
  if (events.length) {
    const [low, high] = axis.range;
    const height = low + 0.02 * (high - low);
    const bottom = axis.type === "log" ? 10 ** height : height;
    traces.push({
      x: events.map(({ step }) => step),
      y: events.map(() => bottom),
      text: events.map(({ run, text }) => plain(severalRuns ? `${DATA.runs[run]}: ${text}` : text)),
      name: "warning",
      mode: "markers",
      cliponaxis: false,
      marker: { color: colours.bad, size: 8, symbol: "triangle-up" },
      hovertemplate: "%{text}",
    });
  }
  return traces;
}

function layoutOf(chart, axis, height) {
  const grid = colours.line;
  const shared = { gridcolor: grid, linecolor: grid, zeroline: false, tickcolor: grid };
  const names = chart.x.names;
  const labels = names.length ? { tickvals: [...names.keys()], ticktext: names.map(plain) } : { nticks: 7 };
  const hover = {
    hoverformat: chart.x.is_steps ? "d" : ".4g",
    unifiedhovertitle: { text: `${plain(chart.x.label)} %{x}` },
    spikecolor: colours.muted,
    spikethickness: 1,
    spikedash: "solid",
  };
  const ticks = {};
  const numPowers = axis.type === "log" ? axis.range[1] - axis.range[0] : 0;
  if (numPowers >= 2) ticks.dtick = 1; // a label for each power of ten
  else if (numPowers >= 1) ticks.dtick = "D2"; // and for 2 and 5 times each: plotly's, for 2 to 9, overlap
  // A copy, which plotly changes while a reader drags.
  const range = [...(chosen.ranges[chart.x.label] ?? wholeRanges[chart.x.label])];
  return {
    height,
    autosize: true,
    margin: { l: 8, r: 14, t: 8, b: 8 },
    font: { color: colours.muted, family: getComputedStyle(document.body).fontFamily, size: 11 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    hovermode: names.length ? "x" : "x unified",
    hoverlabel: { bgcolor: colours.surface, bordercolor: colours.line, font: { color: colours.text }, namelength: -1 },
    // On a touch screen, a finger on a chart scrolls the page.
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
    showlegend: false,
    xaxis: {
      ...shared,
      ...labels,
      ...hover,
      type: chart.x.scale,
      automargin: true,
      range,
      title: { text: plain(chart.x.label), standoff: 4 },
    },
    yaxis: {
      ...shared,
      ...ticks,
      type: axis.type,
      range: axis.range,
      automargin: true,
      fixedrange: true,
      exponentformat: "power",
      nticks: 6,
    },
  };
}

/** Return the ends of the horizontal axis of some charts, which zoom together. */
function wholeRange(charts) {
  const [chart] = charts;
  if (chart.x.names.length) return [-0.5, chart.x.names.length - 0.5];
  const curves = charts.flatMap(({ series }) => series.flatMap((one) => one.curves));
  const [first, last] = extent(curves.flatMap(({ steps }) => steps.map((x) => position(chart, x))));
  const margin = (chart.x.scale === "log" ? 0.08 : 0.02) * (last - first) || 1;
  return [first - margin, last + margin];
}

// ---- the elements around a chart

function sampleLine({ colour, dash }) {
  const patterns = { solid: "", dot: "2 2", dashdot: "7 2 2 2", dash: "6 3", longdash: "10 3" };
  const pattern = patterns[dash] ?? dash.replaceAll("px", "");
  const stroke = { "stroke-width": 2, stroke: `var(--${colour})`, "stroke-dasharray": pattern };
  const sample = svg("svg", { viewBox: "0 0 22 8", "aria-hidden": "true" });
  sample.append(svg("line", { x1: 0, x2: 22, y1: 4, y2: 4, ...stroke }));
  return sample;
}

/** Return a button of a legend that hides an item of a list and shows it again. */
function legendButton(list, item, label, title, style) {
  const button = html("button", { type: "button", title }, sampleLine(style), html("span", { class: "name" }, label));
  const show = () => button.setAttribute("aria-pressed", String(!list().includes(item)));
  button.addEventListener("click", () => {
    toggle(list(), item);
    redraw();
  });
  controls.push(show);
  return button;
}

function makeCard(chart, index) {
  const isFirst = index === 0 && byId("charts").classList.contains("first-wide");
  const title = html("h3", { id: `chart-${index}` }, chart.title);
  const canvas = html("div", { class: "plot", role: "img", "aria-label": summaryOf(chart) });
  const legend = html("div", { class: "legend", role: "group", "aria-label": `Curves of ${chart.title}` });
  for (const series of chart.series) {
    const style = lineStyle(chart, series, 0);
    if (severalRuns) style.colour = "muted";
    const origin = `${series.key} in ${DATA.file}`;
    const button = legendButton(() => chosen.hiddenSeries, seriesName(chart, series), series.label, origin, style);
    if (!chart.x.names.length && !series.is_front) button.append(...lastValues(series));
    legend.append(button);
  }
  const hidden = "Values that are not positive are left out: Linear shows them.";
  const hidesValues = html("p", { class: "hint", hidden: "" }, hidden);
  const height = isFirst ? FIRST_HEIGHT : HEIGHT;
  const card = { chart, canvas, hidesValues, height, isNear: false, listens: false, redraws: 0 };
  const copy = toolButton(card, "CSV", "Copy the values", copyCsv);
  const save = toolButton(card, "PNG", "Save the figure", savePng);
  const caption = html("figcaption", {}, title, html("span", { class: "tools" }, copy, save));
  const figure = html("figure", { class: "chart", "aria-labelledby": title.id }, caption, canvas, legend);
  figure.append(hidesValues);
  if (chart.explanation) figure.append(html("p", { class: "hint" }, chart.explanation));
  if (chart.note) figure.append(html("p", { class: "hint note bad" }, chart.note));
  canvas.style.height = `${card.height}px`;
  byId("charts").append(figure);
  return card;
}

/** Return the last value of each curve of a series, in the colour of its run. */
function lastValues(series) {
  return series.curves.filter((curve) => curve.values.length).map(({ run, last }) => {
    const style = severalRuns ? `color: var(--c${run % NUM_COLOURS})` : "";
    return html("b", { style }, short(last));
  });
}

function summaryOf(chart) {
  const ends = [];
  for (const { label, is_front: isFront, curves } of chart.series) {
    for (const curve of curves.filter(({ values }) => values.length)) {
      const run = severalRuns && !isFront ? ` of ${DATA.runs[curve.run]}` : "";
      ends.push(`${label}${run} from ${short(curve.first)} to ${short(curve.last)}`);
    }
  }
  return `${chart.title}: ${ends.join("; ")}`;
}

function toolButton(card, kind, verb, run) {
  const text = `${verb} of ${card.chart.title} as ${kind}`;
  const button = html("button", { type: "button", title: text, "aria-label": text }, kind);
  button.addEventListener("click", async () => {
    button.textContent = await run(card);
    setTimeout(() => { button.textContent = kind; }, 1500);
  });
  return button;
}

function fileName(chart, suffix) {
  return `${chart.title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/-$/, "")}.${suffix}`;
}

/** Return a cell of CSV. Text that spreadsheets take as a formula, by its first character, gets an apostrophe. */
function csvCell(value) {
  if (typeof value === "number") return String(value);
  const text = String(value).replace(/^[=+\-@\t\r]/, "'$&");
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** Return the values of a chart as CSV: a row for each position, a column for each curve. */
function csvOf(chart) {
  const columns = [];
  for (const series of chart.series) {
    for (const curve of series.curves.filter(({ values }) => values.length)) {
      const values = new Map(curve.steps.map((step, index) => [step, curve.values[index]]));
      columns.push({ name: curveName(series, curve.run), values });
    }
  }
  const steps = [...new Set(columns.flatMap(({ values }) => [...values.keys()]))].sort((a, b) => a - b);
  const rows = [[chart.x.label, ...columns.map(({ name }) => name)]];
  for (const step of steps) {
    rows.push([chart.x.names[step] ?? step, ...columns.map(({ values }) => values.get(step) ?? "")]);
  }
  return rows.map((row) => `${row.map(csvCell).join(",")}\n`).join("");
}

/** Copy the values. Browsers have no clipboard for pages of a server without encryption: save them there. */
async function copyCsv({ chart }) {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(csvOf(chart));
    return "copied";
  }
  const href = URL.createObjectURL(new Blob([csvOf(chart)], { type: "text/csv" }));
  html("a", { href, download: fileName(chart, "csv") }).click();
  return "saved";
}

/** Save the figure with a title and a legend, in the colours of the page. */
async function savePng({ chart, canvas, height }) {
  const shown = shownCurves(chart);
  const axis = verticalAxis(chart, shown);
  const layout = layoutOf(chart, axis, height + 120);
  const font = { color: colours.text };
  const labelled = {
    ...layout,
    showlegend: true,
    legend: { orientation: "h", y: -0.25, font },
    title: { text: plain(chart.title), font },
    margin: { ...layout.margin, t: 40 },
    paper_bgcolor: colours.surface,
  };
  const figure = { data: tracesOf(chart, shown, axis), layout: labelled };
  const width = Math.max(600, canvas.clientWidth);
  const picture = await Plotly.toImage(figure, { format: "png", width, height: height + 120, scale: 2 });
  html("a", { href: picture, download: fileName(chart, "png") }).click();
  return "saved";
}

// ---- drawing

async function draw(card) {
  const drawing = redraws;
  const { chart, canvas, height } = card;
  const shown = shownCurves(chart);
  const axis = verticalAxis(chart, shown);
  card.hidesValues.hidden = !axis.hides;
  const config = { displayModeBar: false, responsive: true, doubleClick: "autosize" };
  await Plotly.react(canvas, tracesOf(chart, shown, axis), layoutOf(chart, axis, height), config);
  card.redraws = drawing;
  if (!card.listens) canvas.on("plotly_relayout", (change) => onZoom(chart.x.label, change));
  card.listens = true;
}

function isStale(card) {
  return card.redraws !== redraws;
}

/** Zoom all charts with the same horizontal axis; a double click shows all of it again. */
function onZoom(x, change) {
  if ("xaxis.range[0]" in change) chosen.ranges[x] = [change["xaxis.range[0]"], change["xaxis.range[1]"]];
  else if ("xaxis.autorange" in change) delete chosen.ranges[x];
  else return;
  redraw();
}

/** Draw what is near the visible part of the page now, and the other charts once they are. */
function redraw() {
  readColours();
  controls.forEach((show) => show());
  redraws += 1;
  cards.filter(({ isNear }) => isNear).forEach(draw);
}

function showControls() {
  if (byId("smoothing")) {
    byId("smoothing").value = chosen.smoothing;
    byId("smoothing-value").textContent = Number(chosen.smoothing).toFixed(2);
    document.querySelector(`input[name=scale][value=${chosen.scale}]`).checked = true;
  }
  byId("whole-range").hidden = Object.keys(chosen.ranges).length === 0;
}

function makeCharts() {
  for (const { x } of DATA.charts) {
    wholeRanges[x.label] ??= wholeRange(DATA.charts.filter((chart) => chart.x.label === x.label));
  }
  DATA.charts.forEach((chart, index) => cards.push(makeCard(chart, index)));
  for (const [run, name] of severalRuns ? DATA.runs.entries() : []) {
    const style = { colour: `c${run % NUM_COLOURS}`, dash: "solid" };
    byId("run-legend").append(legendButton(() => chosen.hiddenRuns, run, name, name, style));
  }
  byId("smoothing")?.addEventListener("input", ({ target }) => { chosen.smoothing = Number(target.value); redraw(); });
  byId("scale")?.addEventListener("change", ({ target }) => { chosen.scale = target.value; redraw(); });
  byId("whole-range").addEventListener("click", () => { chosen.ranges = {}; redraw(); });
  byId("theme").addEventListener("change", redraw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  addEventListener("beforeprint", () => cards.filter(isStale).forEach(draw));
  controls.push(showControls);
  const observer = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      const card = cards.find(({ canvas }) => canvas === target);
      card.isNear = isIntersecting;
      if (isIntersecting && isStale(card)) draw(card);
    }
  }, { rootMargin: "400px" });
  cards.forEach(({ canvas }) => observer.observe(canvas));
  redraw();
}

/** Show what another version of this page showed. */
function chooseAgain(choices) {
  Object.assign(chosen, choices);
  redraw();
}

if (byId("charts")) makeCharts();
