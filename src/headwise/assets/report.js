"use strict";
// Sorting and filtering is all that this script does: the page is whole without it.
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

// What is empty stands last, before it what lacks tasks, whatever the order.
function last(row, place, value) {
  return value === "" ? 2 : row.cells[place].classList.contains("part") ? 1 : 0;
}

function arrange(table) {
  const head = table.querySelector('th[aria-sort$="scending"]');
  if (!head) return;
  const place = Number(head.dataset.place), order = head.getAttribute("aria-sort");
  for (const body of table.tBodies) {
    const rows = [...body.rows].filter((row) => !row.classList.contains("block"));
    const keyed = rows.map((row) => [key(row, place), row]);
    keyed.sort(([a, one], [b, other]) => {
      const apart = last(one, place, a) - last(other, place, b);
      return apart || (order === "ascending" ? compare(a, b) : compare(b, a));
    });
    body.append(...keyed.map(([, row]) => row));
  }
}

function mark(head, order) {
  for (const other of head.closest("table").querySelectorAll("th[aria-sort]")) other.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", order);
}

function sort(button) {
  const head = button.closest("th");
  const before = head.getAttribute("aria-sort");
  const first = head.classList.contains("num") ? "descending" : "ascending";
  mark(head, before === "none" ? first : before === "ascending" ? "descending" : "ascending");
  arrange(head.closest("table"));
}

for (const button of document.querySelectorAll("th button")) button.addEventListener("click", () => sort(button));

const board = document.querySelector(".board");
const filters = [...document.querySelectorAll("[data-by]")];

function filter() {
  const by = Object.fromEntries(filters.map((field) => [field.dataset.by, field.value.trim()]));
  let count = 0;
  for (const body of board.tBodies) {
    const before = count;
    for (const row of body.rows) {
      if (row.classList.contains("block")) continue;
      const tasks = JSON.parse(row.dataset.tasks), labels = JSON.parse(row.dataset.labels);
      const named = row.cells[0].textContent.toLowerCase().includes(by.method.toLowerCase());
      const fits = named && (!by.task || by.task in tasks) && (!by.label || labels.includes(by.label));
      const cell = row.cells[1];
      if (by.task in tasks) cell.dataset.v = tasks[by.task];
      else delete cell.dataset.v;
      cell.textContent = by.task in tasks ? tasks[by.task].toFixed(2) : "";
      row.hidden = !fits;
      count += fits;
    }
    body.hidden = count === before;
  }
  document.querySelector("#leaderboard .none").hidden = count > 0;
  const chosen = board.querySelector("th.chosen");
  const was = board.classList.contains("by-task");
  board.classList.toggle("by-task", by.task !== "");
  chosen.firstElementChild.textContent = by.task || "task";
  if (by.task && !was) mark(chosen, "descending");
  if (!by.task && was && chosen.getAttribute("aria-sort") !== "none") {
    mark([...board.querySelectorAll("th.num")].find((head) => head.textContent === "mean"), "descending");
  }
  arrange(board);
}

// A page that is read again while runs go on keeps what was chosen, where the browser allows it.
function remembered(write) {
  try {
    const store = window.sessionStorage, name = `headwise ${location.pathname}`;
    if (write) store.setItem(name, JSON.stringify(filters.map((field) => field.value)));
    return JSON.parse(store.getItem(name)) || [];
  } catch {
    return [];
  }
}

for (const field of filters) {
  field.addEventListener("input", () => {
    filter();
    remembered(true);
  });
}
if (document.querySelector('meta[http-equiv="refresh"]')) {
  remembered(false).forEach((value, place) => {
    if (filters[place]) filters[place].value = value;
  });
}
if (filters.some((field) => field.value)) filter();
