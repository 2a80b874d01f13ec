const DATA = JSON.parse(document.getElementById("report-data").textContent);

function byId(id) {
  return document.getElementById(id);
}

/** Make an HTML element. Children may be elements or text, which is not parsed as HTML. */
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

/** Format a number for a column, like `even` of html.py: as many digits for values of similar size, a dash for none. */
function even(value) {
  if (value == null) return "–";
  return value.toFixed(Math.abs(value) < 10 ? 4 : 2).replace("-", "−");
}

function clamp(value, min, max) {
  return Math.min(Math.max(value, min), max);
}

/** Call `draw` once the element has a size, and whenever it changes. */
function onResize(element, draw) {
  new ResizeObserver(() => draw()).observe(element);
}
