// What is asked of the server. Whatever goes wrong is a Refused, with a sentence for people.
import { knows, newId, root, say } from "./browser.js";

export class Refused extends Error {
  constructor(sentence, status = 0) { // 0: no answer came
    super(sentence);
    this.status = status;
  }
}

async function request(path, body, signal) {
  const headers = { accept: "application/json", "content-type": "application/json" };
  const sent = body === undefined ? {} : { method: "POST", body: JSON.stringify(body) };
  let reply;
  try {
    reply = await fetch(`${root}${path}?lang=${document.documentElement.lang}`, { headers, signal, ...sent });
  } catch {
    throw new Refused(say("unreachable"));
  }
  if (!reply.ok) throw new Refused(sentence((await reply.json().catch(() => ({}))).error) ?? `${reply.status} ${reply.statusText}`, reply.status);
  return reply;
}

// What is said of an error, as a sentence: the page's own words for its code, else for its type, else the server's.
function sentence(error) {
  const named = [error?.code, error?.type].map((name) => `error_${name}`).find(knows);
  if (named) return say(named);
  const words = typeof error === "string" ? error : error?.message;
  return words && words.replace(/^[a-z](?=[a-z]*[ ,;])/, (letter) => letter.toUpperCase()) + (/[.!?。！？]$/.test(words) ? "" : say("full_stop"));
}

async function json(path, body) {
  const reply = await request(path, body);
  return reply.json().catch(() => { throw new Refused(say("unreadable")); });
}

export const state = () => json("/chat/state");
export const consent = (answer, text) => json("/v1/consent", { answer, text });
export const forget = () => json("/v1/forget", {});
export const feedback = (body) => json("/v1/feedback", { idempotency_key: newId(), ...body });

// The events of a turn, as they come. Raises Refused for an error in their midst, and where they end before their end.
export async function* events(body, signal) {
  const reader = (await request("/chat/turn", body, signal)).body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  try {
    for (;;) {
      const { value, done } = await reader.read().catch(() => ({ done: true }));
      if (done) throw new Refused(say("broke_off"));
      const parts = (waiting + value).split(/\r?\n\r?\n/);
      waiting = parts.pop();
      for (const part of parts) {
        const data = part.startsWith("data:") ? part.slice(5).trim() : ""; // else a comment that keeps the line open
        if (data === "[DONE]") return;
        const event = data && read(data);
        if (event.error) throw new Refused(sentence(event.error) ?? say("broke_off"));
        if (event) yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => null);
  }
}

function read(data) {
  try {
    return JSON.parse(data);
  } catch {
    throw new Refused(say("unreadable"));
  }
}
