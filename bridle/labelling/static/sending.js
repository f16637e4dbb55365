// An answer is sent until the server says that it has it, and a draft as it is written. Whatever is not there yet lies in this browser.
import { seconds } from "./attention.js";

const LONGEST_WAIT = 30, DRAFT_DELAY = 1200, LARGEST_LAST_WORD = 60_000; // seconds; milliseconds; bytes that a page may still send as it closes

export function kept(name, value) {
  try {
    if (value === undefined) return JSON.parse(localStorage.getItem(name));
    if (value === null) localStorage.removeItem(name);
    else localStorage.setItem(name, JSON.stringify(value));
  } catch { /* no storage here, or none left: what is on the page is still sent */ }
  return null;
}

const owner = (form) => `bridle ${form.dataset.labeler} ${form.getAttribute("action")}`;
const pendingOf = (form) => `${owner(form)} pending`;
const draftOf = (form) => `${owner(form)} draft ${form.dataset.item}`;

// ---------------------------------------------------------------------------------------------------------- answers

export function fields(form, submitter) {
  form.elements.active_seconds.value = seconds();
  const found = new FormData(form);
  if (submitter?.name) found.set(submitter.name, submitter.value);
  for (const area of form.querySelectorAll("textarea[name^='edit.']")) {
    if (area.value === area.dataset.original) found.delete(area.name); // looked at, and not changed
  }
  return found;
}

export const pending = (form) => kept(pendingOf(form));

// The reply to an answer, however long that takes. The same key goes along each time, so that one that arrived twice is one answer.
// `tell` is called with a problem's name while there is one. Of what the server refuses, its sentence is in `error`.
export async function deliver(form, body, tell) {
  const action = form.getAttribute("action");
  kept(pendingOf(form), { item: form.dataset.item, ...kept(pendingOf(form)), body });
  for (let tries = 0; ; tries += 1) {
    const reply = await request(action, body);
    const said = reply?.headers.get("content-type")?.includes("json") ? await reply.json().catch(() => null) : null;
    if (reply?.ok && said?.stored) {
      kept(pendingOf(form), null);
      kept(`${owner(form)} draft ${new URLSearchParams(body).get("item")}`, null);
      return said;
    }
    if (reply?.status === 500 || (reply?.status < 500 && reply.status >= 400 && ![401, 408, 429].includes(reply.status))) {
      kept(pendingOf(form), null);
      return { error: said?.error ?? `${reply.status} ${reply.statusText}` };
    }
    const signedOut = reply?.status === 401 || reply?.redirected;
    const wait = Number(reply?.headers.get("retry-after")) || Math.min(2 ** tries, LONGEST_WAIT);
    tell(signedOut ? "signedOut" : reply?.status === 429 ? "wait" : "notSaved", Math.ceil(wait));
    await pause(wait, reply?.status !== 429);
  }
}

async function request(action, body) {
  try {
    const headers = { accept: "application/json", "content-type": "application/x-www-form-urlencoded" };
    return await fetch(action, { method: "POST", headers, body, signal: AbortSignal.timeout(60_000) });
  } catch {
    return null;
  }
}

// So many seconds, or less where the connection or the person comes back before.
function pause(wait, orSooner) {
  return new Promise((done) => {
    const early = new AbortController();
    const end = () => { clearTimeout(timer); early.abort(); done(); };
    const timer = setTimeout(end, wait * 1000);
    if (!orSooner) return;
    addEventListener("online", end, { signal: early.signal });
    document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && end(), { signal: early.signal });
  });
}

// ---------------------------------------------------------------------------------------------------------- drafts

let timer = null;

export function keepDraft(form) {
  kept(draftOf(form), asObject(form));
  timer ??= setTimeout(() => saveDraft(form), DRAFT_DELAY);
}

// As the page is hidden or closed, by a request that outlives it.
export function saveDraft(form, { closing = false } = {}) {
  if (timer === null) return;
  dropDraft();
  const body = JSON.stringify(asObject(form)), name = draftOf(form);
  if (closing && body.length > LARGEST_LAST_WORD) return; // it stays in this browser, and is sent when the task is opened again
  const headers = { "content-type": "application/json", accept: "application/json" };
  fetch(`${form.getAttribute("action")}/draft`, { method: "POST", headers, body, keepalive: closing })
    .then((reply) => reply.ok && !reply.redirected && JSON.stringify(kept(name)) === body && kept(name, null), () => null);
}

export function dropDraft() {
  clearTimeout(timer);
  timer = null;
}

// What this browser has and the server has not: put back into the page.
export function restoreDraft(form) {
  const draft = kept(draftOf(form));
  if (!draft) return false;
  for (const control of form.elements) {
    if (!control.name || control.type === "hidden" || control.type === "submit") continue;
    const values = [draft[control.name] ?? []].flat();
    if (["radio", "checkbox"].includes(control.type)) control.checked = values.includes(control.value);
    else control.value = values[0] ?? "";
  }
  keepDraft(form);
  return true;
}

function asObject(form) {
  const values = fields(form);
  return Object.fromEntries([...new Set(values.keys())].map((name) => {
    const all = values.getAll(name);
    return [name, all.length > 1 ? all : all[0]];
  }));
}

// ---------------------------------------------------------------------------------------------------------- what was seen

export function reportSeen(form) {
  const headers = { "content-type": "application/json", accept: "application/json" };
  const body = JSON.stringify({ item: form.dataset.item });
  fetch(`${form.getAttribute("action")}/seen`, { method: "POST", headers, body, keepalive: true }).catch(() => null);
}
