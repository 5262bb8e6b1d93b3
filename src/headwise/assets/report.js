"use strict";
// Sorting is all that this script does: the page is whole without it.
document.documentElement.classList.add("js");
const words = new Intl.Collator(undefined, { numeric: true });

function key(row, place) {
  const cell = row.cells[place];
  if (cell.dataset.v !== undefined) return Number(cell.dataset.v);
  return cell.textContent.trim();
}

function compare(a, b) {
  return typeof a === "number" && typeof b === "number" ? a - b : words.compare(a, b);
}

function sort(button) {
  const head = button.closest("th");
  const table = head.closest("table");
  const place = Number(head.dataset.place);
  const before = head.getAttribute("aria-sort");
  const first = head.classList.contains("num") ? "descending" : "ascending";
  const order = before === "none" ? first : before === "ascending" ? "descending" : "ascending";
  for (const other of table.querySelectorAll("th[aria-sort]")) other.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", order);
  const rows = [...table.tBodies[0].rows].map((row) => [key(row, place), row]);
  rows.sort(([a], [b]) => {
    if (a === "" || b === "") return (a === "") - (b === "");
    return order === "ascending" ? compare(a, b) : compare(b, a);
  });
  table.tBodies[0].append(...rows.map(([, row]) => row));
}

for (const button of document.querySelectorAll("th button")) button.addEventListener("click", () => sort(button));
