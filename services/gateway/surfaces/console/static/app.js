// The page: one state machine (idle, working, stopping, trouble) over the session form, the log and the composer.

import { get, key, post, Problem, run } from "./api.js";
import { toggle } from "./theme.js";
import { money, Turn } from "./turn.js";

const $ = (id) => document.getElementById(id);
const log = $("log");
let state = "idle";
let active = null; // the run id of the turn at work
let turns = [];
let unused = ""; // the thread that this page has named and nobody has written to

function enter(next, words = next) {
  state = next;
  $("state").dataset.state = next;
  $("state").lastElementChild.textContent = words;
  const busy = next === "working" || next === "stopping";
  $("stop").hidden = !busy;
  $("stop").disabled = next === "stopping";
  $("send").disabled = busy || !key.get();
  for (const id of ["agent", "thread", "new-thread"]) $(id).disabled = busy || (id === "agent" && !key.get());
}

function announce(text, urgent = false) {
  $(urgent ? "alert" : "announce").textContent = text;
}

// Follows the end of the log unless the reader has scrolled away from it.
function follow() {
  if (log.scrollHeight - log.scrollTop - log.clientHeight < 160) log.scrollTop = log.scrollHeight;
}

function totals() {
  const sum = (name) => turns.reduce((total, turn) => total + (turn.usage?.[name] || 0), 0);
  $("total-turns").textContent = turns.length;
  $("total-tokens").textContent = (sum("input_tokens") + sum("output_tokens")).toLocaleString("en");
  $("total-tools").textContent = turns.reduce((total, turn) => total + turn.tools.size, 0);
  $("total-cost").textContent = sum("cost_microusd") ? money(sum("cost_microusd")) : "$0";
}

function newTurn() {
  $("welcome").hidden = true;
  const turn = new Turn(log, $("agent").value, (words) => {
    if (words && state === "working" && turn === turns.at(-1)) enter("working", words);
    follow();
  });
  turns.push(turn);
  return turn;
}

function explain(error) {
  if (error instanceof Problem && error.status === 401) return "The API key is not valid.";
  return error instanceof Problem && error.requestId ? `${error.message} (request ${error.requestId})` : error.message;
}

async function send(text) {
  const thread = $("thread").value;
  unused = "";
  const turn = newTurn();
  turn.said(text);
  enter("working", "starting");
  announce("The agent is working.");
  log.scrollTop = log.scrollHeight;
  $("title").textContent = thread;
  try {
    const body = { input: text, on_disconnect: "continue" };
    if ($("agent").value) body.agent = $("agent").value;
    for await (const event of run(thread, body, (times) => enter("working", `reconnecting (${times})`))) {
      if (event.type === "accepted") {
        active = event.run_id;
        if (state === "stopping") stop();
      } else turn.take(event);
    }
    enter("idle");
    announce(`The agent has answered: ${turn.answer.slice(0, 400) || "no text"}`);
  } catch (error) {
    turn.notice(explain(error), "bad");
    turn.finish();
    enter("trouble", "trouble");
    announce(explain(error), true);
  }
  active = null;
  totals();
  follow();
}

async function stop() {
  if (state !== "working" && state !== "stopping") return;
  enter("stopping", "stopping");
  if (!active) return;
  try {
    await post(`/v1/runs/${encodeURIComponent(active)}/cancel`, { reason: "stopped in the console" });
  } catch (error) {
    enter("working", "could not stop");
    announce(explain(error), true);
  }
}

function clear() {
  for (const turn of turns) turn.node.remove();
  turns = [];
  $("welcome").hidden = false;
  totals();
}

// Reads a thread back from its log, through the same drawing as live events.
async function open() {
  const thread = $("thread").value;
  clear();
  $("title").textContent = thread || "New conversation";
  if (!key.get() || !thread || thread === unused) return;
  try {
    const { events } = await get(`/replay/${encodeURIComponent(thread)}`);
    const byRun = new Map();
    for (const event of events) {
      if (!event.run_id) continue;
      if (!byRun.has(event.run_id)) byRun.set(event.run_id, newTurn());
      byRun.get(event.run_id).take(event);
    }
    for (const turn of turns) if (!turn.ended) turn.note("still at work when this page was opened");
    announce(`${turns.length} turns read back.`);
  } catch (error) {
    if (!(error instanceof Problem && error.status === 404)) {
      enter("trouble", "trouble");
      announce(explain(error), true);
    }
  }
  totals();
  log.scrollTop = log.scrollHeight;
}

async function agents() {
  const select = $("agent");
  if (!key.get()) return enter("idle");
  try {
    const { data } = await get("/v1/agents");
    const chosen = select.value;
    select.replaceChildren(...data.map((agent) => new Option(agent.name, agent.name)));
    if (data.some((agent) => agent.name === chosen)) select.value = chosen;
    const describe = () => ($("agent-note").textContent = data.find((agent) => agent.name === select.value)?.description || "");
    select.onchange = describe;
    describe();
    $("key-note").textContent = "Kept in this tab only.";
    enter("idle");
  } catch (error) {
    select.replaceChildren(new Option("—", ""));
    $("key-note").textContent = explain(error);
    enter("trouble", error.status === 401 ? "no access" : "trouble");
    announce(explain(error), true);
  }
}

function freshThread() {
  const bytes = crypto.getRandomValues(new Uint8Array(4));
  unused = `console-${Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("")}`;
  return unused;
}

function grow() {
  const input = $("input");
  input.style.height = "auto";
  input.style.height = `${Math.min(input.scrollHeight + 2, 200)}px`;
}

function submit() {
  const text = $("input").value.trim();
  if (!text || state === "working" || state === "stopping") return;
  if (!key.get()) return $("key").focus();
  if (!$("thread").value) $("thread").value = freshThread();
  if (!$("thread").reportValidity()) return;
  $("input").value = "";
  grow();
  send(text);
}

$("composer").addEventListener("submit", (event) => (event.preventDefault(), submit()));
$("input").addEventListener("input", grow);
$("input").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) (event.preventDefault(), submit());
});
document.addEventListener("keydown", (event) => event.key === "Escape" && stop());
$("stop").addEventListener("click", stop);
$("prompts").addEventListener("click", (event) => {
  if (event.target instanceof HTMLButtonElement) ($("input").value = event.target.textContent), grow(), $("input").focus();
});
$("key").addEventListener("change", () => (key.set($("key").value.trim()), agents()));
$("session").addEventListener("submit", async (event) => {
  event.preventDefault();
  key.set($("key").value.trim());
  await agents();
  await open();
  if (key.get()) $("input").focus();
});
$("new-thread").addEventListener("click", () => (($("thread").value = freshThread()), clear(), ($("title").textContent = "New conversation"), $("input").focus()));
$("theme").addEventListener("click", toggle);

const wanted = new URLSearchParams(location.search).get("thread");
$("thread").value = wanted || freshThread();
$("key").value = key.get();
enter("idle");
await agents();
if (wanted) await open();
(key.get() ? $("input") : $("key")).focus();
