// The page of a task: one key, or one press, answers what is asked. All of it listens on the document, so nothing piles up from task to task.
import { begin as beginAttention, painted, watch } from "./attention.js";
import { hide, show } from "./differences.js";
import * as ranking from "./ranking.js";
import { deliver, dropDraft, fields, keepDraft, kept, pending, reportSeen, restoreDraft, saveDraft } from "./sending.js";

const UNSEEN = 250; // milliseconds after a task was painted in which no key judges it: it was meant for the one before
const TYPED = "textarea, select, [contenteditable], input:not([type=radio], [type=checkbox])";
const work = document.getElementById("work"), said = document.getElementById("said");
const form = () => work.querySelector("form.task");
const rows = () => [...form().querySelectorAll("[data-row]")];
const isAnswered = (row) => row.querySelector("input:checked") !== null;
const isReady = () => form()?.dataset.ready !== undefined;
let sending = false;

// ---------------------------------------------------------------------------------------------------------- a task comes

async function begin() {
  const task = form();
  if (!task) return;
  beginAttention(task.elements.active_seconds.value);
  restoreDraft(task);
  task.classList.toggle("several", rows().length > 1);
  if (rows().length) activate(rows().find((row) => !isAnswered(row)) ?? rows()[0], false);
  if (task.matches(".ranking")) ranking.begin(task);
  for (const details of task.querySelectorAll("details")) details.open = holdsSomething(details);
  foldPrompt(task);
  for (const name of ["differences", "linked"]) if (setting(name)) apply(name);
  await painted();
  if (document.visibilityState === "visible") reportSeen(task);
  setTimeout(() => { task.dataset.ready = ""; }, UNSEEN);
}

const holdsSomething = (box) => [...box.querySelectorAll("input, textarea")].some((one) => one.type === "checkbox" ? one.checked : one.value);

function foldPrompt(task) {
  const turns = task.querySelector(".turns"), button = task.querySelector(".fold");
  button.hidden = turns.scrollHeight <= turns.clientHeight + 4;
  const last = turns.lastElementChild.querySelector(".text"); // what is to be answered
  if (turns.childElementCount > 1) turns.scrollTop = last.offsetTop - turns.offsetTop;
  if (history.state?.item === task.dataset.item) turns.scrollTop = history.state.top;
}

function replace(reply, address) {
  work.innerHTML = reply.html; // the server's own page, escaped there
  history.replaceState(null, "", address);
  scrollTo(0, 0);
  const heading = work.querySelector("h1");
  heading?.setAttribute("tabindex", "-1");
  heading?.focus({ preventScroll: true });
  begin();
}

// ---------------------------------------------------------------------------------------------------------- answering

function activate(row, reveal = true) {
  for (const one of rows()) one.classList.toggle("active", one === row);
  if (reveal && rows().length > 1) row.scrollIntoView({ block: "nearest" });
}

const activeRow = () => rows().find((row) => row.matches(".active"));

// What completes an answer sends it.
function choose(input) {
  input.checked = true;
  keepDraft(form());
  const left = rows().find((row) => !isAnswered(row));
  if (left) activate(left);
  else send(null);
}

function missing(task) {
  const row = rows().find((one) => !isAnswered(one));
  if (row) {
    activate(row);
    return task.dataset.missing.replace("{what}", row.querySelector("legend").textContent);
  }
  if (task.matches(".ranking") && ranking.unplaced(task)) return task.dataset.unplaced.replace("{what}", ranking.unplaced(task));
  return "";
}

async function send(submitter) {
  const task = form(), lacking = submitter?.name ? "" : missing(task);
  if (lacking) return problem(lacking);
  if (!sending) await sendBody(new URLSearchParams(fields(task, submitter)).toString());
}

async function sendBody(body) {
  const task = form();
  sending = true;
  dropDraft();
  problem("");
  task.classList.add("busy");
  const reply = await deliver(task, body, (what, seconds) => {
    task.inert = true; // what waits to be sent is not changed any more
    problem(task.dataset[what].replace("{seconds}", seconds), what === "signedOut");
  });
  sending = false;
  task.inert = false;
  task.classList.remove("busy");
  if (reply.error) {
    problem(reply.error);
    keepDraft(task);
    return;
  }
  replace(reply, task.getAttribute("action"));
  said.textContent = `${reply.note} ${(work.querySelector(".progress") ?? work.querySelector("h1")).textContent.trim()}`;
  if (reply.note === said.dataset.saved) return;
  work.querySelector(".note-now").textContent = reply.note;
  work.querySelector(".note-now").hidden = false;
}

// The answer before comes back, to be given again.
async function undo(undoing) {
  if (form()) saveDraft(form());
  const [action, body] = [undoing.getAttribute("action"), new URLSearchParams(new FormData(undoing))];
  const reply = await fetch(action, { method: "POST", headers: { accept: "application/json" }, body }).catch(() => null);
  const told = reply?.headers.get("content-type")?.includes("json") ? await reply.json() : null;
  if (told?.html) replace(told, action.replace(/undo$/, `answers/${told.item}`));
  else if (told?.error) problem(told.error);
  else undoing.submit(); // the whole page says what is the matter
}

function problem(sentence, signIn = false) {
  const box = work.querySelector(".problem");
  box.hidden = !sentence;
  box.textContent = sentence;
  if (!signIn) return;
  const link = document.querySelector("#sign-in").content.cloneNode(true);
  box.append(" ", link);
}

// ---------------------------------------------------------------------------------------------------------- what else there is

const setting = (name) => kept(`bridle ${name}`) ?? name === "linked";

function toggle(name) {
  kept(`bridle ${name}`, !setting(name));
  apply(name);
}

const texts = () => [...form().querySelectorAll(".answer > .text")];

function apply(name) {
  const button = form().querySelector(`[data-sets="${name}"]`);
  button?.setAttribute("aria-pressed", setting(name));
  if (!button || name !== "differences") return;
  if (!setting(name)) hide(texts());
  else if (!show(texts())) said.textContent = form().dataset.tooLong;
}

async function open(link) {
  const dialog = document.getElementById(link.dataset.opens);
  if (link.href) {
    const reply = await fetch(link.href).catch(() => null);
    if (!reply?.ok || reply.redirected) return location.assign(link.href);
    const page = new DOMParser().parseFromString(await reply.text(), "text/html");
    dialog.lastElementChild.replaceChildren(...page.querySelector("main").childNodes);
  }
  dialog.showModal();
}

function unfold(button) {
  const open = button.getAttribute("aria-expanded") !== "true";
  button.setAttribute("aria-expanded", open);
  form().querySelector(".turns").classList.toggle("open", open);
}

const SCROLLS = { ArrowDown: 60, ArrowUp: -60, PageDown: 0.85, PageUp: -0.85, " ": 0.85 };

function scroll(name) {
  const box = texts().sort((a, b) => b.scrollHeight - a.scrollHeight)[0], by = SCROLLS[name];
  if (!box || box.scrollHeight <= box.clientHeight + 1) return false;
  box.scrollBy(0, Math.abs(by) < 1 ? by * box.clientHeight : by);
  return true;
}

// ---------------------------------------------------------------------------------------------------------- keys

function onKey(event) {
  const target = event.target, name = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (event.ctrlKey || event.altKey || event.metaKey || event.isComposing || event.defaultPrevented) return;
  if (document.querySelector("dialog[open]")) return;
  if (target.closest?.(TYPED)) {
    if (name === "Escape") target.blur();
    return;
  }
  const task = form() ?? work;
  if (task.inert) return;
  const native = target.closest?.("button, a, summary, input");
  if (event.repeat ? name in SCROLLS && !native && scroll(name) : act(task, name, native)) event.preventDefault();
}

// Whether the key meant something.
function act(task, name, native) {
  const judges = /^[0-9scu=]$|^Enter$|^Backspace$/.test(name);
  if (native && (name === "Enter" || name === " " || name.startsWith("Arrow"))) return false;
  if (judges && form() && (!isReady() || sending)) return true;
  if (name === "Enter") { if (form()) send(null); return true; }
  if (task.matches(".ranking") && ranking.key(task, name)) return true;
  if (name === "Backspace") return Boolean(form()) && back();
  if (name in SCROLLS) return Boolean(form()) && scroll(name);
  const wanted = `[aria-keyshortcuts="${CSS.escape(name)}"]`;
  const input = form() && activeRow()?.querySelector(`input${wanted}`);
  if (input) { choose(input); return true; }
  const other = task.querySelector(`.chosen ${wanted}`) ?? task.querySelector(`:is(button, a, summary)${wanted}`);
  other?.click();
  if (other?.matches("summary") && other.parentElement.open) other.parentElement.querySelector("input, textarea")?.focus();
  return Boolean(other);
}

function back() {
  const at = rows().indexOf(activeRow());
  if (at < 1) return false;
  const row = rows()[at - 1];
  row.querySelectorAll("input").forEach((input) => { input.checked = false; });
  activate(row);
  return true;
}

// ---------------------------------------------------------------------------------------------------------- the pointer, and the rest

function onClick(event) {
  const { target } = event, task = form();
  const opens = target.closest("[data-opens]"), sets = target.closest("[data-sets]"), fold = target.closest(".fold");
  if (opens) { event.preventDefault(); open(opens); return; }
  if (!task || !task.contains(target)) return;
  if (sets) toggle(sets.dataset.sets);
  if (fold) unfold(fold);
  const input = target.closest(".choice")?.querySelector("input");
  // A press of the pointer chooses and sends as a key does; arrow keys and screen readers go through the choices first.
  if (input && event.detail > 0) {
    event.preventDefault();
    if (isReady() && !sending) setTimeout(() => choose(input)); // after the browser has taken back what it had checked
  }
  if (task.matches(".ranking")) ranking.press(task, target);
}

function onToggle({ target }) {
  const area = target.matches?.(".edit") && target.open && target.querySelector("textarea");
  if (!area || area.value) return;
  area.value = area.dataset.original = target.closest(".answer").querySelector(".text").textContent;
}

let leading = null; // the answer that the person scrolls: the other one follows it

let noting = null;

function onScroll({ target }) {
  if (target.matches?.(".turns")) {
    clearTimeout(noting);
    noting = setTimeout(() => history.replaceState({ item: form()?.dataset.item, top: target.scrollTop }, ""), 100);
  }
  if (!form()?.matches(".pairwise") || !setting("linked") || !target.matches?.(".answer > .text")) return;
  if (leading && leading !== target) return;
  leading = target;
  const other = texts().find((box) => box !== target);
  const share = target.scrollTop / Math.max(target.scrollHeight - target.clientHeight, 1);
  other.scrollTop = share * (other.scrollHeight - other.clientHeight);
  clearTimeout(onScroll.timer);
  onScroll.timer = setTimeout(() => { leading = null; }, 120);
}

function onInput({ target }) {
  const task = form();
  if (!task?.contains(target)) return;
  keepDraft(task);
  const row = target.closest("[data-row]");
  if (row) activate(row);
  if (task.matches(".ranking")) ranking.draw(task);
}

const leave = () => form() && saveDraft(form(), { closing: true });

watch();
ranking.watchDrags(form);
document.addEventListener("keydown", onKey);
document.addEventListener("click", onClick);
document.addEventListener("change", onInput);
document.addEventListener("input", onInput);
document.addEventListener("toggle", onToggle, true);
document.addEventListener("scroll", onScroll, { capture: true, passive: true });
document.addEventListener("submit", (event) => {
  if (event.target !== form() && event.target.id !== "undo") return;
  event.preventDefault();
  if (sending || (form() && !isReady())) return;
  if (event.target.id === "undo") undo(event.target);
  else send(event.submitter);
});
document.addEventListener("visibilitychange", () => document.visibilityState === "hidden" && leave());
addEventListener("pagehide", leave);

await begin();
const unsent = form() && pending(form());
if (unsent) sendBody(unsent.body);
