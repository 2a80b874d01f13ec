const DATA = JSON.parse(document.getElementById("report-data").textContent);

function byId(id) {
  return document.getElementById(id);
}

/** Make an HTML element; children may be texts, which are never parsed as HTML. */
function html(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** Make an SVG element. */
function svg(name, attributes = {}, text = null) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== null) element.textContent = text;
  return element;
}

/** Write a number short: four digits, a power of ten only where there is no other way. */
function short(value) {
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2).replace("-", "−").replace("-", "−");
  return String(Number(value.toPrecision(4))).replace("-", "−");
}

/** Write a number for a column, or a dash for none: all of about one size have as many digits. */
function even(value) {
  if (value === null) return "–";
  return value.toFixed(Math.abs(value) < 10 ? 4 : 2).replace("-", "−");
}

function clamp(value, least, greatest) {
  return Math.min(Math.max(value, least), greatest);
}

/** Call `draw` once the element has a width, and whenever that changes. */
function onResize(element, draw) {
  new ResizeObserver(() => draw()).observe(element);
}
