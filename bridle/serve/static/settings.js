// What somebody agreed to, asked once and changed at any time, and how they are forgotten.
import { find, kept, putHtml, root, say } from "./browser.js";
import { all, remove } from "./conversations.js";
import * as server from "./server.js";

const NOT_NOW = "bridle not now"; // the text that somebody would not answer yet
const question = find("consent"), dialog = find("settings"), keeping = find("keeping"), problem = find("setting-problem"), forget = find("forget");
let consent = { answer: null, text: null }, leaving = null;

export const hasAgreed = () => consent.answer === "agreed";

// `tell`: a notice for people. `leave`: of a conversation that is to be forgotten.
export function begin(found, tell, leave) {
  consent = found;
  leaving = leave;
  const { answer, text } = consent;
  for (const box of document.querySelectorAll(".asked")) if (text) putHtml(box, text.markdown_html);
  for (const box of document.querySelectorAll(".asked")) if (text) box.lang = text.lang;
  dialog.querySelector(".nothing").hidden = text !== null;
  keeping.disabled = text === null;
  keeping.checked = hasAgreed();
  question.hidden = text === null || answer !== null || kept(NOT_NOW) === text.sha256;
  for (const button of question.querySelectorAll("button")) button.onclick = () => answered(button.value, tell);
  keeping.onchange = () => answered(keeping.checked ? "agreed" : "refused", tell);
}

async function answered(answer, tell) {
  const sentence = await change(() => server.consent(answer, consent.text.sha256));
  if (!sentence) {
    consent.answer = answer;
    kept(NOT_NOW, consent.text.sha256);
    if (!question.hidden) find("message").focus();
    question.hidden = true;
  }
  keeping.checked = hasAgreed();
  if (sentence || hasAgreed()) tell(sentence || say("agreed_now"));
}

// The sentence of what went wrong, if anything did.
async function change(doing) {
  let sentence = "";
  try {
    await doing();
  } catch (error) {
    sentence = say("not_kept", { reason: error.message });
  }
  problem.textContent = sentence;
  problem.hidden = !sentence;
  return sentence;
}

const sure = forget.querySelector(".sure"), ask = forget.querySelector(".ask");
const setSure = (asked) => {
  [sure.hidden, ask.hidden] = [!asked, asked];
  (asked ? sure.querySelector(".no") : ask).focus();
};
ask.addEventListener("click", () => setSure(true));
sure.querySelector(".no").addEventListener("click", () => setSure(false));
sure.querySelector(".yes").addEventListener("click", async () => {
  if (await change(server.forget)) return;
  leaving();
  all().forEach((one) => remove(one.id));
  for (const name of [NOT_NOW, "bridle draft"]) kept(name, null);
  location.assign(`${root}/chat`); // as somebody new
});
find("open-settings").addEventListener("click", () => dialog.showModal());
