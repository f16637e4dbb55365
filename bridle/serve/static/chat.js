// The chat page: one conversation is open, and at most one answer is being written.
import { find, kept, newId, say } from "./browser.js";
import { all, blank, drawList, load, remove, save } from "./conversations.js";
import * as server from "./server.js";
import { begin as beginSettings, hasAgreed } from "./settings.js";
import { draw, grow, isOpen, isSending, settle, update } from "./turns.js";

const DRAFT = "bridle draft", UNSEEN = 300; // milliseconds after two answers are begun in which no key votes: it was meant for the text
const PICKS = { 1: "first", 2: "second", 3: "tie", 4: "both_bad", s: "skip" };
const turns = find("turns"), empty = turns.firstElementChild, message = find("message"), notice = find("notice"), list = find("conversations");
let conversation = blank(), live = null; // { turn, abort, began }
let offered = { reasons: [], flags: [] };
const views = new WeakMap(), gone = new WeakSet(); // of turns; of conversations

// ---------------------------------------------------------------------------------------------------------- what is seen

const act = {
  edit: (turn, text) => edit(turn, text),
  again: () => again(),
  earlier: (turn) => {
    const [before, ...rest] = turn.earlier;
    replace(turn, { ...before, earlier: [...rest, { ...turn, earlier: [] }] });
  },
  vote: (turn, pick) => vote(turn, pick),
  react: (body) => server.feedback(body).then(() => null, (error) => say("not_kept", { reason: error.message })),
  kept: () => keep(conversation),
  reasons: () => offered.reasons,
  flags: () => offered.flags,
};

function view(turn) {
  const drawn = draw(turn, act);
  views.get(turn)?.replaceWith(drawn);
  views.set(turn, drawn);
  return drawn;
}

const isAtEnd = () => turns.scrollHeight - turns.scrollTop - turns.clientHeight < 60;
const toEnd = () => { turns.scrollTop = turns.scrollHeight; };

// What changes the page, with its end in sight where it was.
function following(change) {
  const following = isAtEnd();
  change();
  if (following) toEnd();
}

function drawAll() {
  turns.replaceChildren(empty, ...conversation.turns.map(view));
  empty.hidden = conversation.turns.length > 0;
  history.replaceState(null, "", conversation.turns.length ? `#${conversation.id}` : location.pathname);
  drawList(conversation.id, listed);
  toEnd();
}

function replace(turn, other) {
  conversation.turns[conversation.turns.indexOf(turn)] = other;
  views.set(other, views.get(turn));
  view(other);
  keep(conversation);
}

function tell(sentence, undo) {
  notice.hidden = !sentence;
  notice.firstElementChild.textContent = sentence;
  notice.querySelector(".undo").hidden = !undo;
  notice.querySelector(".undo").onclick = () => { tell(""); undo(); };
}

function keep(one) {
  if (!save(one)) tell(say("no_room"));
  drawList(conversation.id, listed);
}

// ---------------------------------------------------------------------------------------------------------- conversations

function open(one) {
  stop();
  conversation = one;
  fold(true);
  tell("");
  drawAll();
}

// What is still written of it is not kept.
function leave() {
  gone.add(conversation);
  open(blank());
}

const listed = {
  open: (id) => open(load(id) ?? blank()),
  rename: (id, title) => {
    const one = id === conversation.id ? conversation : load(id);
    one.title = title;
    keep(one);
    list.querySelector("[aria-current]")?.focus();
  },
  remove: (id) => {
    const one = id === conversation.id ? conversation : load(id);
    if (one === conversation) leave();
    remove(id);
    drawList(conversation.id, listed);
    tell(say("deleted", { title: one.title }), () => { gone.delete(one); keep(one); open(one); });
    notice.querySelector(".undo").focus();
  },
};

function fold(folded) {
  list.classList.toggle("open", !folded);
  find("open-list").setAttribute("aria-expanded", !folded);
}

// ---------------------------------------------------------------------------------------------------------- a turn

function send(text) {
  const waiting = conversation.turns.at(-1);
  if (waiting && isOpen(waiting)) vote(waiting, "skip");
  tell("");
  add({ role: "user", text });
  message.value = "";
  written();
  answer(false);
}

function add(turn) {
  conversation.turns.push(turn);
  empty.hidden = true;
  for (const form of turns.querySelectorAll(".more")) form.hidden ||= !form.querySelector("input")?.value; // what nobody went on with
  turns.append(view(turn));
  toEnd();
}

// What the model is sent: nothing that was never answered, which it may have been refused for.
function dialogue() {
  const messages = [];
  for (const turn of conversation.turns) {
    const content = turn.text ?? turn.answers[turn.chosen].text;
    if (content) messages.push({ role: turn.role, content });
    else messages.pop();
  }
  return messages;
}

async function answer(regenerate, earlier = []) {
  const own = conversation, abort = new AbortController();
  const turn = { role: "assistant", answers: [{ text: "" }], chosen: 0, ended: false, kept: false, earlier };
  const body = { messages: dialogue(), conversation: own.id, regenerate };
  live = { turn, abort, began: Infinity };
  add(turn);
  keep(own);
  history.replaceState(null, "", `#${own.id}`);
  busy(true);
  find("announcement").textContent = "";
  try {
    for await (const event of server.events(body, abort.signal)) take(turn, event);
  } catch (error) {
    breakOff(turn, abort.signal.aborted ? null : error);
  }
  turn.ended = true;
  if (live?.turn === turn) {
    live = null;
    busy(false);
  }
  if (!gone.has(own)) save(own);
  if (own === conversation) end(turn);
}

function end(turn) {
  following(() => isOpen(turn) ? settle(views.get(turn), turn) : view(turn));
  drawList(conversation.id, listed);
  const { text } = turn.answers[turn.chosen];
  find("announcement").textContent = turn.problem ?? (isOpen(turn) ? `${say("two_answers")}. ${say("better")}` : `${say("model_wrote")}: ${text}`);
}

// `error`: null where it was stopped. Nobody votes on parts: of two answers that with something in it stays.
function breakOff(turn, error) {
  if (!turn.picked) turn.chosen = Math.max(0, turn.answers.findIndex((one) => one.text));
  if (error) turn.problem = say(turn.answers[turn.chosen].text ? "problem_kept" : "problem_none", { reason: error.message });
  else turn.stopped = true;
}

function take(turn, { bridle, choices }) {
  if (bridle?.ids) begin(turn, bridle);
  for (const { index, delta } of choices ?? []) {
    if (delta?.content && turn.answers[index]) turn.answers[index].text += delta.content;
  }
  if (bridle?.html) { // the last one
    turn.kept = bridle.kept ?? hasAgreed();
    turn.answers.forEach((one, place) => { one.html = bridle.html[place]; });
  }
  live && (live.frame ??= requestAnimationFrame(() => {
    if (live) live.frame = null;
    if (!turn.ended) following(() => update(views.get(turn), turn));
  }));
}

function begin(turn, { kind, ids, comparison }) {
  turn.answers = ids.map((id) => ({ id, text: "" }));
  if (kind !== "comparison") return;
  Object.assign(turn, { comparison, key: newId() });
  following(() => view(turn));
  live.began = performance.now();
  if (!message.value) views.get(turn).querySelector(".vote").focus({ preventScroll: true }); // its keys are at hand
}

function stop() {
  live?.abort.abort();
}

function busy(writing) {
  const focused = document.activeElement === find("stop");
  [find("send").hidden, find("stop").hidden] = [writing, !writing];
  if (focused) message.focus();
}

function again() {
  if (live) return;
  const last = conversation.turns.pop();
  views.get(last).remove();
  const { earlier = [], ...before } = last;
  answer(true, before.answers[before.chosen].text ? [before, ...earlier] : earlier);
}

// What stood below is gone then, and comes back by undoing.
function edit(turn, text) {
  stop();
  const before = structuredClone(conversation.turns), place = conversation.turns.indexOf(turn), own = conversation;
  conversation.turns.length = place;
  drawAll();
  send(text);
  if (before.length > place + 2) tell(say("replaced"), () => {
    save(Object.assign(own, { turns: before }));
    open(load(own.id) ?? own);
  });
}

// The choice is made at once; the server answers when both have ended, and names the models then.
async function vote(turn, pick) {
  const body = { comparison_id: turn.comparison, kind: "preference", value: pick, early: !turn.ended, idempotency_key: turn.key };
  const choose = (change) => {
    Object.assign(turn, change);
    following(() => view(turn));
    if (!live) keep(conversation);
  };
  choose({ picked: pick, chosen: pick === "second" ? 1 : 0 });
  message.focus({ preventScroll: true });
  try {
    choose({ models: (await server.feedback(body)).models });
  } catch (error) {
    const refused = say("not_kept", { reason: error.message });
    if (error.status || turn !== conversation.turns.at(-1)) tell(refused);
    else choose({ picked: null, refused }); // it may be sent once more
  }
}

// ---------------------------------------------------------------------------------------------------------- what people do

function written() {
  grow(message);
  find("send").disabled = !message.value.trim();
  kept(DRAFT, message.value || null);
}

const submit = () => !live && message.value.trim() && send(message.value);

find("box").addEventListener("submit", (event) => { event.preventDefault(); submit(); });
message.addEventListener("input", written);
message.addEventListener("keydown", (event) => {
  if (!isSending(event)) return;
  event.preventDefault();
  submit();
});
find("stop").addEventListener("click", stop);
find("new").addEventListener("click", () => { open(blank()); message.focus(); });
find("open-list").addEventListener("click", () => fold(list.classList.contains("open")));
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (event.key === "Escape") return list.classList.contains("open") ? fold(true) : stop();
  if (event.target.matches("textarea, input")) return;
  const last = conversation.turns.at(-1), pick = PICKS[event.key];
  if (event.key === "/") { event.preventDefault(); message.focus(); }
  if (pick && last && isOpen(last) && (live === null || performance.now() - live.began > UNSEEN)) vote(last, pick);
});
addEventListener("pagehide", () => live && save(conversation));
addEventListener("storage", () => drawList(conversation.id, listed));
const online = () => { find("offline").hidden = navigator.onLine; };
["online", "offline"].forEach((kind) => addEventListener(kind, online));

async function start() {
  conversation = load(location.hash.slice(1)) ?? conversation;
  message.value = kept(DRAFT) ?? "";
  written();
  online();
  let sentence = "";
  try {
    const { model, consent, ...rest } = await server.state();
    offered = rest;
    find("model").textContent = model;
    empty.firstElementChild.textContent = say("empty", { model });
    beginSettings(consent, tell, leave);
  } catch (error) {
    sentence = say("state_problem", { reason: error.message });
  }
  drawAll();
  tell(sentence);
  document.body.dataset.ready = "";
}

start();
