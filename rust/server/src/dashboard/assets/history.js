// What was spent, by hour or day and by account or model: one small chart a line, on one scale.

import { get } from "./api.js";
import { address, choice, el, field, filter, put } from "./dom.js";
import { Again, live } from "./store.js";
import { dayOf, nameOf, noun, show, timeOf, UNITS } from "./units.js";

const SPANS = {
  "24h": ["hour", 24, "24 hours"], "3d": ["hour", 72, "3 days, by hour"],
  "7d": ["day", 7, "7 days"], "30d": ["day", 30, "30 days"],
};
const CONSUMED = Object.keys(UNITS).filter((unit) => !["vram_bytes", "concurrency"].includes(unit));
const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 720;
const LOOK_MS = 30_000;

export class History {
  query = "";

  constructor() {
    this.inputs = {
      account: el("input", { autocomplete: "off", spellcheck: "false", placeholder: "all" }),
      unit: choice(CONSUMED.map((unit) => [unit, nameOf(unit)]), "usd_nanos"),
      span: choice(Object.entries(SPANS).map(([key, [, , text]]) => [key, text]), "24h"),
      by: choice([["account", "Account"], ["model", "Model"]], "account"),
    };
    const labels = ["Account", "Unit", "Last", "By"];
    const fields = Object.values(this.inputs).map((input, at) => field(labels[at], input));
    for (const name of ["unit", "span", "by"]) this.inputs[name].addEventListener("change", () => form.requestSubmit());
    const form = el("form", { class: "filters", onsubmit: (event) => this.submit(event) }, fields, el("button", { type: "submit", class: "main" }, "Show"));
    this.wrong = el("p", { class: "wrong", role: "alert" });
    this.found = el("p", { class: "muted", role: "status" });
    this.chart = el("div", { class: "charts" });
    this.values = el("tbody", {});
    this.figures = el(
      "details", {}, el("summary", {}, "Figures"),
      el("table", {}, el("caption", { class: "hidden" }, "Spent over time"), this.values),
    );
    this.again = new Again(LOOK_MS, () => this.look());
    this.root = el("section", { class: "pane scrolls", "aria-label": "History" }, form, this.wrong, this.found, this.chart);
  }

  leave() {
    this.again.leave();
  }

  update(changed) {
    if (changed.has("state") && live.state === "live" && this.wrong.textContent) this.load();
  }

  search(query) {
    this.query = query;
    const lines = this.chart.querySelectorAll(".lines tbody tr");
    const shown = filter(lines, query);
    put(this.found, query.trim() ? `${shown} of the ${lines.length} lines below have that in them.` : "");
  }

  go(params) {
    const usual = { account: "", unit: "usd_nanos", span: "24h", by: "account" };
    for (const [name, input] of Object.entries(this.inputs)) input.value = params[name] || usual[name];
    this.load();
  }

  submit(event) {
    event.preventDefault();
    const values = Object.entries(this.inputs).map(([name, input]) => [name, input.value.trim()]);
    const to = address("history", Object.fromEntries(values));
    if (location.hash === to) this.load();
    else location.hash = to;
  }

  async load() {
    const mine = (this.asked = {});
    const { account, unit, span, by } = this.inputs;
    this.chosen = { account: account.value.trim(), unit: unit.value, span: span.value, by: by.value };
    put(this.wrong, "");
    try {
      await this.look();
    } catch (error) {
      if (this.asked !== mine) return;
      put(this.wrong, error.message);
      this.chart.hidden = true;
    }
  }

  /** Draws what was chosen as it stands by now. */
  async look() {
    const mine = this.asked;
    const { account, unit, span, by } = this.chosen;
    const [stretch, count] = SPANS[span] ?? SPANS["24h"];
    const { timeZone } = new Intl.DateTimeFormat().resolvedOptions();
    const found = await get("/api/history", { account, unit, stretch, by, count, time_zone: timeZone });
    if (this.asked !== mine) return;
    const focused = this.chart.contains(document.activeElement) && document.activeElement.getAttribute("href");
    this.chart.hidden = false;
    this.draw(found);
    if (focused) [...this.chart.querySelectorAll("a")].find((one) => one.getAttribute("href") === focused)?.focus();
    this.search(this.query);
  }

  draw({ start_ms: starts, lines, whole }) {
    const { account, unit, span, by } = this.chosen;
    const isByDay = SPANS[span]?.[0] === "day";
    if (!lines.length) {
      this.chart.replaceChildren(el("p", { class: "note" }, "Nothing was spent in this time."));
      return;
    }
    const total = starts.map((_, at) => lines.reduce((sum, { spent }) => sum + spent[at], 0));
    const add = (spent) => spent.reduce((sum, part) => sum + part, 0);
    const all = add(total);
    const highest = Math.max(1, ...lines.flatMap(({ spent }) => spent));
    const when = (at) => (isByDay ? dayOf(starts[at]) : `${dayOf(starts[at])}, ${timeOf(starts[at])}`);
    const name = (line) => line.name ?? `${line.others} others`;
    const isDeeper = (line) => by === "account" && line.name && line.name !== account;
    const deeper = (line) => address("history", { account: line.name, unit, span, by });
    const row = (line) => el(
      "tr", {},
      el("th", { scope: "row" }, isDeeper(line) ? el("a", { href: deeper(line) }, name(line)) : name(line) || "no model named"),
      el("td", { class: "number" }, show(unit, add(line.spent))),
      el("td", { class: "number share" }, all ? `${Math.round((100 * add(line.spent)) / all)} %` : ""),
      el("td", { class: "spark" }, bars(line.spent, highest, 28, (at) => `${when(at)}: ${show(unit, line.spent[at])}`, `${name(line)} over time`)),
    );
    const figure = (spent, at) => el("tr", {}, el("th", { scope: "row" }, when(at)), el("td", { class: "number" }, show(unit, spent)));
    this.values.replaceChildren(...total.map(figure));
    this.chart.replaceChildren(
      el("h2", {}, `${show(unit, all)}${noun(unit, all)} `, el("span", { class: "muted" }, "spent")),
      bars(total, Math.max(1, ...total), 140, (at) => `${when(at)}: ${show(unit, total[at])}`, `${nameOf(unit)} spent, ${when(0)} to ${when(starts.length - 1)}; the most was ${show(unit, Math.max(...total))}`),
      el("p", { class: "pair muted" }, el("span", {}, when(0)), el("span", {}, `most ${show(unit, Math.max(...total))}`), el("span", {}, when(starts.length - 1))),
      this.figures,
      whole ? "" : el("p", { class: "note" }, "There is more than can be summed in time: older parts are missing. Choose an account, or a shorter time."),
      el(
        "table", { class: "lines" }, el("caption", {}, by === "model" ? "By model" : "By account"),
        el("thead", {}, el("tr", {}, [by === "model" ? "Model" : "Account", "Spent", "Share", "Over time"].map((text, at) => el("th", { scope: "col", class: (at === 1 || at === 2) && "number" }, text)))),
        el("tbody", {}, lines.map(row)),
      ),
    );
  }
}

function bars(values, highest, height, titleOf, label) {
  const svg = document.createElementNS(SVG, "svg");
  const set = (element, attributes) => {
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  };
  set(svg, { viewBox: `0 0 ${WIDTH} ${height}`, preserveAspectRatio: "none", class: "bars", role: "img", "aria-label": label });
  svg.style.height = `${height}px`;
  const step = WIDTH / values.length;
  values.forEach((value, at) => {
    const tall = value > 0 ? Math.max(1, (value / highest) * (height - 1)) : 0;
    const place = { x: at * step + step * 0.1, width: step * 0.8, y: height - tall, height: tall };
    const shape = set(document.createElementNS(SVG, "rect"), place);
    const title = document.createElementNS(SVG, "title");
    title.textContent = titleOf(at);
    shape.append(title);
    svg.append(shape);
  });
  return svg;
}
