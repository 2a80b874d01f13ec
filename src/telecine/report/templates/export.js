const SCALE = 2; // pixels of a PNG for each of the screen
const PADDING = 14;
const LINE = 18;
const PAINTED = ["fill", "stroke", "stroke-width", "stroke-dasharray", "stroke-linejoin", "opacity", "font-family", "font-size", "visibility"];

/** Return the buttons that copy the values of a chart as CSV and save it as PNG. */
function exportButtons(chart) {
  const named = { CSV: ["Copy the values", copyCsv], PNG: ["Save the figure", savePng] };
  return Object.entries(named).map(([kind, [verb, run]]) => {
    const text = `${verb} of ${chart.plot.title} as ${kind}`;
    const button = html("button", { type: "button", title: text, "aria-label": text }, kind);
    button.addEventListener("click", async () => {
      button.textContent = await run(chart);
      setTimeout(() => { button.textContent = kind; }, 1500);
    });
    return button;
  });
}

/** Return the values of a chart as CSV: a row for each position, a column for each curve. */
function csvOf({ plot }) {
  const curves = plot.series.flatMap((series) => series.curves.filter((curve) => curve.values).map((curve) => ({
    name: severalRuns ? `${series.label}, ${DATA.runs[curve.run]}` : series.label,
    values: new Map(curve.steps.map((step, index) => [step, curve.values[index]])),
  })));
  const steps = [...new Set(curves.flatMap(({ values }) => [...values.keys()]))].sort((a, b) => a - b);
  const rows = steps.map((step) => [plot.x_names[step] ?? step, ...curves.map(({ values }) => values.get(step) ?? "")]);
  const quoted = (cell) => (/[",\n]/.test(cell) ? `"${String(cell).replaceAll('"', '""')}"` : cell);
  return [[plot.x, ...curves.map(({ name }) => name)], ...rows].map((row) => `${row.map(quoted).join(",")}\n`).join("");
}

/** Copy the values; browsers have no clipboard for pages of a server without encryption, where they are saved. */
async function copyCsv(chart) {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(csvOf(chart));
    return "copied";
  }
  return save(new Blob([csvOf(chart)], { type: "text/csv" }), chart, "csv");
}

function save(blob, { plot }, suffix) {
  const link = html("a", { href: URL.createObjectURL(blob), download: `${plot.title.replace(/[^\p{L}\p{N}]+/gu, "-")}.${suffix}` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  return "saved";
}

async function savePng(chart) {
  const box = chart.svg.getBoundingClientRect();
  const rows = [byId("run-legend"), chart.legend].flatMap((legend) => [...(legend?.querySelectorAll("button[aria-pressed=true]") ?? [])]);
  const canvas = html("canvas", { width: SCALE * (box.width + 2 * PADDING), height: SCALE * (box.height + (rows.length + 2) * LINE + 2 * PADDING) });
  const context = canvas.getContext("2d");
  const style = getComputedStyle(chart.figure);
  context.scale(SCALE, SCALE);
  context.fillStyle = style.backgroundColor;
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.fillStyle = style.color;
  context.font = `600 14px ${style.fontFamily}`;
  context.fillText(chart.plot.title, PADDING, PADDING + LINE / 2);
  context.drawImage(await pictureOf(chart.svg), PADDING, PADDING + LINE, box.width, box.height);
  context.font = `12px ${style.fontFamily}`;
  for (const [index, row] of rows.entries()) {
    const y = PADDING + box.height + (index + 2) * LINE;
    context.drawImage(await pictureOf(row.querySelector("svg")), PADDING, y, 22, 8);
    context.fillText(row.innerText.replace(/\s+/g, " "), PADDING + 30, y + 8);
  }
  return save(await new Promise((resolve) => { canvas.toBlob(resolve); }), chart, "png");
}

/** Return a drawing as an image, with the styles that the page gives it. */
async function pictureOf(drawing) {
  const copy = drawing.cloneNode(true);
  const copies = [copy, ...copy.querySelectorAll("*")];
  [drawing, ...drawing.querySelectorAll("*")].forEach((element, index) => {
    const style = getComputedStyle(element);
    for (const name of PAINTED) copies[index].style.setProperty(name, style.getPropertyValue(name));
  });
  const { width, height } = drawing.getBoundingClientRect();
  copy.setAttribute("width", width);
  copy.setAttribute("height", height);
  const image = new Image();
  image.src = `data:image/svg+xml,${encodeURIComponent(new XMLSerializer().serializeToString(copy))}`;
  await image.decode();
  return image;
}
