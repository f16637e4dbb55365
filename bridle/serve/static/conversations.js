// Conversations, which this browser keeps and nobody else, and their list.
//   { id, title, changed, turns: [{ role: "user", text }, { role: "assistant", answers: [{ id, text, html }], chosen: 0, … }] }
import { copyOf, find, kept, newId, say } from "./browser.js";

const PREFIX = "bridle conversation ", LONGEST_TITLE = 60;
const list = find("conversations"), entries = list.querySelector("ul");

let naming = false; // while somebody writes a name the list stays as it is

export const blank = () => ({ id: newId(), title: "", changed: 0, turns: [] });
export const remove = (id) => kept(PREFIX + id, null);

const isText = (value) => typeof value === "string";
const isTurn = (turn) => turn?.role === "user" ? isText(turn.text) : Array.isArray(turn?.answers) && isText(turn.answers[turn.chosen]?.text);
const isConversation = (found) => Array.isArray(found?.turns) && found.turns.every(isTurn) && isText(found.title); // others may write there too

export function load(id) {
  const found = kept(PREFIX + id);
  if (!isConversation(found)) return null;
  for (const turn of found.turns) if (turn.answers && !turn.ended) turn.ended = turn.stopped = true; // the page was closed meanwhile
  return found;
}

// Whether there was room for it.
export function save(conversation) {
  const first = conversation.turns[0]?.text.trim().split("\n")[0] ?? "";
  conversation.title ||= first.length > LONGEST_TITLE ? `${first.slice(0, LONGEST_TITLE)} …` : first;
  conversation.changed = Date.now();
  return kept(PREFIX + conversation.id, conversation);
}

// The latest first.
export function all() {
  let names = [];
  try {
    names = Object.keys(localStorage).filter((name) => name.startsWith(PREFIX));
  } catch { /* no storage here */ }
  const found = names.map((name) => kept(name)).filter(isConversation);
  return found.sort((one, other) => other.changed - one.changed);
}

// `act`: what a press does: open(id), rename(id, title), remove(id).
export function drawList(current, act) {
  if (naming) return;
  const found = all();
  list.querySelector(".none").hidden = found.length > 0;
  entries.replaceChildren(...found.map((one) => {
    const entry = copyOf("entry"), title = entry.querySelector(".title");
    title.textContent = one.title || say("unnamed");
    title.addEventListener("click", () => act.open(one.id));
    if (one.id === current) title.setAttribute("aria-current", "true");
    entry.querySelector(".rename").addEventListener("click", () => askName(entry, one, act));
    entry.querySelector(".delete").addEventListener("click", () => act.remove(one.id));
    return entry;
  }));
}

function askName(entry, one, act) {
  const form = copyOf("name"), field = form.querySelector("input");
  field.value = one.title;
  const end = (title) => { field.onblur = null; naming = false; act.rename(one.id, title.trim() || one.title); };
  form.addEventListener("submit", (event) => { event.preventDefault(); end(field.value); });
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    event.stopPropagation();
    end(one.title);
  });
  naming = true;
  field.onblur = () => end(field.value);
  entry.querySelector(".title").replaceWith(form);
  field.select();
}
