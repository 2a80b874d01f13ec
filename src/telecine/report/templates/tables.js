/** Let the buttons in a table's header sort its rows. Missing values come last in both orders. */
function makeSortable(table) {
  [...table.tHead.rows[0].cells].forEach((head) => {
    const button = document.createElement("button");
    button.type = "button";
    button.ariaLabel = head.textContent.trim(); // without the arrow
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => sortBy(button, head.ariaSort === "ascending" ? "descending" : "ascending"));
  });
}

/** Sort the rows of a table by the column of a button in its header; `order` is "ascending" or "descending". */
function sortBy(button, order) {
  const head = button.closest("th");
  const table = head.closest("table");
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", order);
  const sign = order === "ascending" ? 1 : -1;
  const rows = [...table.tBodies[0].rows].map((row) => ({ row, key: sortKey(row.cells[head.cellIndex]) }));
  rows.sort((a, b) => (a.key === null) - (b.key === null) || sign * compareKeys(a.key, b.key));
  table.tBodies[0].replaceChildren(...rows.map(({ row }) => row));
}

/** Return the number or the text in a cell, of which the bold part is the value; null for a dash. */
function sortKey(cell) {
  const text = (cell.querySelector("b") ?? cell).textContent.trim();
  if (["", "-", "–"].includes(text)) return null;
  const number = Number(text.replaceAll("−", "-"));
  return Number.isNaN(number) ? text : number;
}

function compareKeys(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), undefined, { numeric: true });
}

for (const table of document.querySelectorAll("table:has(thead tr)")) {
  if (table.tBodies[0].rows.length > 1) makeSortable(table);
}
