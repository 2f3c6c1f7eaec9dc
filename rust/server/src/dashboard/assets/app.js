// The page: who watches, which view is shown, and what the views share.

import { Accounts } from "./accounts.js";
import { get, isSignedIn, signIn, signOut } from "./api.js";
import { address, el, field, put, say, set } from "./dom.js";
import { Entries } from "./entries.js";
import { Gpus } from "./gpus.js";
import { History } from "./history.js";
import { Incidents, Reservations } from "./lists.js";
import { begin, forget, listen, live } from "./store.js";
import { momentOf } from "./units.js";

const VIEWS = {
  accounts: ["Accounts", Accounts], reservations: ["Reservations", Reservations], gpus: ["GPUs", Gpus],
  incidents: ["Incidents", Incidents], entries: ["Entries", Entries], history: ["History", History],
};
const STATES = {
  connecting: () => "Connecting",
  live: () => "Live",
  lost: () => `Lost${live.heardMs ? ` since ${momentOf(live.heardMs)}` : " the sidecar"}; trying again`,
};

const at = (id) => document.getElementById(id);
const main = at("main");
let view = null;
let viewName = "";
let user = null;

function route() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  const name = Object.hasOwn(VIEWS, path) ? path : "accounts";
  return [name, Object.fromEntries(new URLSearchParams(query))];
}

function show() {
  if (!user) return;
  const [name, params] = route();
  if (name !== viewName) {
    view?.leave();
    const [title, View] = VIEWS[name];
    view = new View({ user });
    viewName = name;
    document.title = `${title} · Bursar`;
    main.replaceChildren(view.root);
    at("query").value = "";
    for (const tab of at("tabs").children) set(tab, "aria-current", tab.dataset.view === name ? "page" : null);
    at("tabs").querySelector("[aria-current]").scrollIntoView({ block: "nearest", inline: "nearest" });
  }
  view.go(params);
}

listen((changed) => {
  const status = at("status");
  const told = STATES[live.state]();
  put(status, told);
  status.className = `status ${live.state}`;
  main.classList.toggle("stale", live.state === "lost");
  if (changed.has("state") && live.state !== "connecting") say(told);
  view?.update(changed);
});

function endView() {
  view?.leave();
  [view, viewName] = [null, ""];
}

/** Asks for a token; `why`: what went wrong, or empty. */
function askWho(why) {
  forget();
  endView();
  user = null;
  for (const id of ["tabs", "search", "leave"]) at(id).hidden = true;
  put(at("who"), "");
  put(at("status"), "");
  main.classList.remove("stale");
  const token = el("input", { type: "password", autocomplete: "current-password", required: true, spellcheck: "false" });
  const wrong = el("p", { class: "wrong", role: "alert" }, why);
  const submit = async (event) => {
    event.preventDefault();
    try {
      await signIn(token.value);
      await start();
    } catch (error) {
      put(wrong, error.message);
      token.select();
    }
  };
  main.replaceChildren(el(
    "form", { class: "sign-in card", onsubmit: submit },
    el("h2", {}, "Sign in"),
    el("p", { class: "muted" }, "With a token of the sidecar: an operator makes one by `bursar token create`."),
    field("Token", token), wrong,
    el("button", { type: "submit", class: "main" }, "Sign in"),
  ));
  document.title = "Sign in · Bursar";
  token.focus();
}

async function start() {
  try {
    user = await get("/api/me");
  } catch (error) {
    if (error.status === 401) return askWho(error.message);
    put(at("status"), error.message);
    setTimeout(start, 2000);
    return undefined;
  }
  if (!user) return askWho("");
  put(at("who"), `${user.name}, ${user.role}${user.account ? ` of ${user.account}` : ""}`);
  for (const id of ["tabs", "search"]) at(id).hidden = false;
  at("leave").hidden = !isSignedIn();
  endView();
  main.replaceChildren();
  begin(askWho);
  return show();
}

for (const [name, [title]] of Object.entries(VIEWS)) {
  at("tabs").append(el("a", { href: address(name), "data-view": name }, title));
}
at("leave").addEventListener("click", async () => {
  await signOut();
  forget();
  start();
});
at("search").addEventListener("submit", (event) => event.preventDefault());
at("query").addEventListener("input", () => view?.search(at("query").value));
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address is the view's
  (main.querySelector("[tabindex='0'], input, a") ?? main).focus();
});
window.addEventListener("hashchange", show);
window.addEventListener("keydown", (event) => {
  const isTyping = /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement?.tagName);
  if (event.key !== "/" || isTyping || document.querySelector("dialog[open]")) return;
  event.preventDefault();
  at("query").focus();
});
start();
