// What the scripts of the chat page share: its words, its templates, and what this browser keeps.
const frame = document.querySelector(".chat-top"), words = JSON.parse(frame.dataset.words);

export const root = frame.dataset.root; // the path that a proxy puts us under
export const say = (key, values = {}) => (words[key] ?? key).replace(/{(\w+)}/g, (_, name) => values[name]);
export const knows = (key) => Object.hasOwn(words, key);
export const find = (id) => document.getElementById(id);
export const copyOf = (id) => find(id).content.firstElementChild.cloneNode(true);

// With a value it is put there, with null removed; returns whether that went well.
export function kept(name, value) {
  try {
    if (value === undefined) return JSON.parse(localStorage.getItem(name));
    if (value === null) localStorage.removeItem(name);
    else localStorage.setItem(name, JSON.stringify(value));
    return true;
  } catch { // no storage here, or none left, or something else wrote there
    return value === undefined ? null : false;
  }
}

// A UUID. crypto.randomUUID() is there under https alone.
export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = bytes[6] & 15 | 64;
  bytes[8] = bytes[8] & 63 | 128;
  const digits = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return digits.replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
}

// The one place where HTML is put into the page: the server's, which let through what is on its list and nothing else.
export function putHtml(box, html) {
  box.innerHTML = html;
  box.classList.add("formatted");
  for (const wide of box.querySelectorAll("pre, table")) wide.tabIndex = 0; // it may scroll
  for (const code of box.querySelectorAll("pre")) {
    const frame = copyOf("code"), button = frame.firstElementChild;
    button.addEventListener("click", () => copy(code.textContent, button));
    code.replaceWith(frame);
    frame.prepend(code);
  }
}

export async function copy(text, button) {
  const label = button.textContent;
  try {
    if (navigator.clipboard) await navigator.clipboard.writeText(text);
    else copyOldWay(text); // without https
    button.textContent = say("copied");
  } catch {
    button.textContent = say("copy_failed");
  }
  setTimeout(() => { button.textContent = label; }, 2000);
}

function copyOldWay(text) {
  const area = document.body.appendChild(document.createElement("textarea")), before = document.activeElement;
  area.value = text;
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  before.focus();
  if (!done) throw new Error("not copied");
}
