// GPUs and the processes on them, as the watchdog sees them.

import { bar, el, link, put } from "./dom.js";
import { live, tables } from "./store.js";
import { show } from "./units.js";

const STATES = {
  watching: "Watching", no_nvml: "No NVIDIA driver", blind: "Blind", off: "Off", unspecified: "Unknown",
};
const MODES = { observe: "only jobs that ask for it are stopped", enforce: "every job is held to its limits" };
const MOST = 500;

const gib = (bytes) => (bytes == null ? "—" : show("vram_bytes", bytes));
const percent = (value) => (value == null ? "—" : `${value} %`);

export class Gpus {
  query = "";

  constructor() {
    this.state = el("p", { class: "muted" });
    this.devices = el("div", { class: "devices" });
    this.table = el("div", { class: "scroll-x", tabindex: 0, role: "region", "aria-label": "Processes" });
    this.root = el("section", { class: "pane scrolls", "aria-label": "GPUs" }, el("div", { class: "tools" }, this.state), this.devices, this.table);
    this.draw();
  }

  leave() {}
  go() {}

  search(query) {
    this.query = query.trim().toLowerCase();
    this.draw();
  }

  update(changed) {
    if (["device", "process", "job", "watchdog", "ready"].some((table) => changed.has(table))) this.draw();
  }

  draw() {
    const watchdog = tables.watchdog.get("");
    const words = watchdog
      ? [STATES[watchdog.state] ?? watchdog.state, MODES[watchdog.mode], watchdog.driver && `driver ${watchdog.driver}`, watchdog.detail, watchdog.held_back]
      : [live.ready ? "No word of the watchdog" : "Loading…"];
    put(this.state, words.filter(Boolean).join(" · "));
    const devices = [...tables.device.values()].sort((one, other) => one.index - other.index);
    this.devices.replaceChildren(...devices.map(card));
    const focused = this.table.contains(document.activeElement) && document.activeElement.getAttribute("href");
    this.table.replaceChildren(...this.processes());
    if (focused) [...this.table.querySelectorAll("a")].find((one) => one.getAttribute("href") === focused)?.focus();
  }

  processes() {
    const names = new Map([...tables.device].map(([uuid, device]) => [uuid, device.index]));
    const onGpus = new Set();
    const rows = [];
    for (const one of tables.process.values()) {
      if (one.job) onGpus.add(one.job);
      rows.push({ ...one, gpu: names.get(one.device), job: tables.job.get(one.job)?.name ?? "" });
    }
    for (const [id, job] of tables.job) {
      if (!onGpus.has(id)) rows.push({ pid: job.pid, command: job.name, account: job.account, job: job.name, gpu: null });
    }
    const found = rows.filter(({ account, command, job, pid }) =>
      !this.query || [account, command, job, `${pid}`].some((text) => text?.toLowerCase().includes(this.query)));
    found.sort((one, other) => (one.gpu ?? 1e9) - (other.gpu ?? 1e9) || (other.vram ?? 0) - (one.vram ?? 0));
    if (!found.length) return [el("p", { class: "note" }, rows.length ? "No process has that in it." : "No process is on a GPU, and no job runs.")];
    const shown = found.slice(0, MOST).map((one) => el(
      "tr", {},
      el("td", { class: "number" }, one.gpu == null ? "—" : `${one.gpu}`),
      el("td", { class: "number" }, `${one.pid}`),
      el("td", {}, one.command),
      el("td", {}, one.account ? link("accounts", { account: one.account }, one.account) : "nobody's"),
      el("td", {}, one.job || "—"),
      el("td", { class: "number" }, gib(one.vram)),
      el("td", { class: "number" }, percent(one.busy)),
    ));
    const head = ["GPU", "Pid", "Command", "Account", "Job", "Memory", "Busy"];
    const numbers = new Set(["GPU", "Pid", "Memory", "Busy"]);
    const table = el(
      "table", {}, el("caption", {}, found.length > MOST ? `Processes: the first ${MOST} of ${found.length}` : "Processes"),
      el("thead", {}, el("tr", {}, head.map((text) => el("th", { scope: "col", class: numbers.has(text) && "number" }, text)))),
      el("tbody", {}, shown),
    );
    return [table];
  }
}

function card(device) {
  const shape = bar();
  const used = device.used ?? 0;
  const lost = device.quarantined ?? 0;
  shape.fill(used - lost, lost, device.total, [], `${gib(device.used)} of ${gib(device.total)} used`);
  return el(
    "article", { class: "card" },
    el("h2", {}, `GPU ${device.index} · ${device.name}`),
    shape,
    el("p", { class: "pair" }, el("span", {}, `${gib(device.used)} of ${gib(device.total)}`), el("span", {}, `busy ${percent(device.busy)}`)),
    lost > 0 && el("p", { class: "muted" }, `${gib(lost)} did not come back after a stop`),
    device.error && el("p", { class: "wrong" }, device.error),
  );
}
