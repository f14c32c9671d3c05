// The page as a whole: who is signed in, and which view the address names.

import { get, key, list } from "./api.js";
import { Chat, freshThread, threadList } from "./chat.js";
import { $, announce, explain, plain } from "./dom.js";
import { release } from "./media.js";
import { ReplayView } from "./replay.js";
import { RunView } from "./run.js";
import { RunsView } from "./runs.js";
import { toggle } from "./theme.js";
import { UsageView } from "./usage.js";

const chat = new Chat({ listed: () => listThreads() });
const views = {
  runs: new RunsView($("view-runs")), run: new RunView($("view-run")), replay: new ReplayView($("view-replay")),
    usage: new UsageView($("view-usage")),
};
const TITLES = { chat: "Chat", runs: "Runs", run: "Run", replay: "Replay", usage: "Usage" };
let current = "";

// `#/runs/run_1` is the view `run` with `run_1`.
function route() {
  const [, name = "", rest = ""] = /^#\/([a-z]+)(?:\/(.*))?$/.exec(location.hash) || [];
  let id = "";
  try {
    id = decodeURIComponent(rest);
  } catch {
    id = "";
  }
  if (name === "runs" && id) return ["run", id];
  return Object.hasOwn(TITLES, name) && name !== "run" ? [name, id] : ["chat", id];
}

// A view opens in its own time, and says itself what went wrong.
function show() {
  if (!key.get()) return undefined;
  const [name, id] = route();
  if (current && current !== "chat" && current !== name) views[current].leave();
  current = name;
  for (const view of Object.keys(TITLES)) $(`view-${view}`).hidden = view !== name;
  for (const link of document.querySelectorAll("#nav a")) {
    const here = link.dataset.view === (name === "run" ? "runs" : name);
    if (here) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${TITLES[name]}, Bulkhead console`;
  $("threads").closest("details").open = innerWidth > 860;
  if (name !== "chat") return void views[name].open(id);
  chat.open(id || chat.thread);
  $("input").focus();
  return markThread();
}

function markThread() {
  for (const link of document.querySelectorAll("#threads a")) {
    if (link.hash === `#/chat/${encodeURIComponent(chat.thread)}`) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
}

async function listThreads() {
  try {
    const threads = await list("/v1/threads", 50);
    $("threads-note").textContent = threads.length ? "" : "Threads stand here once there are some.";
    await threadList($("threads"), chat.thread, threads);
  } catch (error) {
    if (key.get()) $("threads-note").textContent = explain(error);
  }
}

async function agents() {
  const select = $("agent");
  const { data } = await get("/v1/agents?limit=200");
  const chosen = select.value;
  select.replaceChildren(...data.map((agent) => new Option(plain(agent.name, 60), agent.name)));
  if (data.some((agent) => agent.name === chosen)) select.value = chosen;
  const describe = () => ($("agent-note").textContent = plain(data.find((agent) => agent.name === select.value)?.description, 200));
  select.onchange = describe;
  describe();
}

function gate(open) {
  $("gate").hidden = open;
  $("shell").hidden = !open;
  document.body.classList.toggle("signed-in", open);
}

async function signIn() {
  $("sign-in").disabled = true;
  try {
    await agents();
    gate(true);
    $("key").value = "";
    $("key-note").textContent = "Kept in this tab only, until you sign out or close it.";
    chat.machine.take("sign_in");
    listThreads();
    show();
  } catch (error) {
    gate(false);
    if (error.status === 401) key.set("");
    $("key-note").textContent = explain(error);
    $("key").setAttribute("aria-invalid", "true");
    $("key").focus();
    announce(explain(error), true);
  }
  $("sign-in").disabled = false;
}

function signOut() {
  key.set("");
  chat.signOut();
  Object.values(views).forEach((view) => (view.signOut ?? view.leave).call(view));
  release();
  $("view-run").replaceChildren();
  $("threads").replaceChildren();
  $("agent").replaceChildren();
  current = "";
  history.replaceState(null, "", location.pathname);
  document.title = "Bulkhead console";
  gate(false);
  $("key").focus();
  announce("Signed out. What this tab kept is gone.");
}

function newThread() {
  // Nobody has written to it: there is no log to ask for.
  chat.unused = freshThread();
  location.hash = `#/chat/${chat.unused}`;
}

const SHORTCUTS = {
  KeyC: () => (location.hash = "#/chat"), KeyR: () => (location.hash = "#/runs"),
    KeyP: () => (location.hash = `#/replay/${encodeURIComponent(chat.thread)}`),
  KeyU: () => (location.hash = "#/usage"), KeyN: newThread, KeyT: toggle, KeyK: () => $("keys").showModal(),
};

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && current === "chat" && !$("keys").open) chat.stop();
  if (!event.altKey || event.ctrlKey || event.metaKey || !key.get() || !Object.hasOwn(SHORTCUTS, event.code)) return;
  event.preventDefault();
  SHORTCUTS[event.code]();
});
$("session").addEventListener("submit", (event) => {
  event.preventDefault();
  $("key").removeAttribute("aria-invalid");
  key.set($("key").value.trim());
  if (key.get()) signIn();
});
$("open-thread").addEventListener("submit", (event) => {
  event.preventDefault();
  if ($("thread").value.trim() && $("thread").reportValidity()) location.hash = `#/chat/${encodeURIComponent($("thread").value.trim())}`;
});
$("new-thread").addEventListener("click", newThread);
$("sign-out").addEventListener("click", signOut);
$("show-keys").addEventListener("click", () => $("keys").showModal());
$("close-keys").addEventListener("click", () => $("keys").close());
for (const button of document.querySelectorAll(".theme")) button.addEventListener("click", toggle);
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  if (!key.get()) return $("key").focus();
  if (current === "chat") return $("input").focus();
  return document.querySelector(`#view-${current} h1`)?.focus();
});
addEventListener("hashchange", show);

const wanted = new URLSearchParams(location.search).get("thread");
if (wanted) history.replaceState(null, "", `${location.pathname}#/chat/${encodeURIComponent(wanted)}`);
if (key.get()) await signIn();
else {
  gate(false);
  $("key").focus();
}
document.documentElement.dataset.ready = "";
