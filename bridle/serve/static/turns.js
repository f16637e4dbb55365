// A turn as it is seen: what somebody wrote, an answer with what can be said of it, or two answers to choose from.
// `act` is what a press does: edit, again, earlier, vote, react, kept.
import { copy, copyOf, putHtml, say } from "./browser.js";

const chosen = (turn) => turn.answers[turn.chosen];
export const isOpen = (turn) => turn.answers?.length > 1 && !turn.picked && !turn.problem && !turn.stopped; // a comparison that waits for a vote

export function draw(turn, act) {
  if (turn.role === "user") return question(turn, act);
  const view = isOpen(turn) ? comparison(turn, act) : answer(turn, act);
  view.classList.toggle("live", !turn.ended);
  return view;
}

const press = (view, name, done) => view.querySelector(name).addEventListener("click", (event) => done(event.currentTarget));

function question(turn, act) {
  const view = copyOf("question"), text = view.querySelector(".text");
  text.textContent = turn.text;
  press(view, ".copy", (button) => copy(turn.text, button));
  press(view, ".edit", () => {
    const form = copyOf("editing"), area = form.querySelector("textarea"), rest = [text, view.querySelector("footer")];
    area.value = turn.text;
    const end = () => { form.remove(); rest.forEach((one) => { one.hidden = false; }); view.querySelector(".edit").focus(); };
    const send = () => area.value.trim() && act.edit(turn, area.value);
    form.addEventListener("submit", (event) => { event.preventDefault(); send(); });
    form.querySelector(".cancel").addEventListener("click", end);
    area.addEventListener("keydown", (event) => {
      if (event.key === "Escape") { event.stopPropagation(); end(); }
      if (isSending(event)) { event.preventDefault(); send(); }
    });
    rest.forEach((one) => { one.hidden = true; });
    view.append(form);
    grow(area);
    area.addEventListener("input", () => grow(area));
    area.focus();
  });
  return view;
}

// Enter, and not the one that ends a word of an input method; Safari sends that with the code 229 alone.
export const isSending = (event) => event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229;

export function grow(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + area.offsetHeight - area.clientHeight}px`;
}

// Plain text while it comes, then what the server made of its Markdown.
function fill(box, one, turn) {
  if (turn.ended && typeof one.html === "string") putHtml(box, one.html);
  else box.append(document.createTextNode(turn.ended ? one.text.trimEnd() : one.text));
}

// What has come since is put behind what is there, which stays as it is.
export function update(view, turn) {
  const answers = isOpen(turn) ? turn.answers : [chosen(turn)];
  view.querySelectorAll(".text").forEach(({ firstChild: node }, place) => node.appendData(answers[place].text.slice(node.length)));
}

// The end, without drawing anew what somebody may be about to press.
export function settle(view, turn) {
  view.querySelectorAll(".text").forEach((box, place) => { box.replaceChildren(); fill(box, turn.answers[place], turn); });
  view.classList.remove("live");
}

function answer(turn, act) {
  const view = copyOf("answer"), one = chosen(turn), problem = view.querySelector(".problem");
  fill(view.querySelector(".text"), one, turn);
  view.querySelector(".stopped").hidden = !turn.stopped;
  problem.textContent = turn.problem ?? "";
  problem.hidden = !turn.problem;
  press(view, ".copy", (button) => copy(one.text, button));
  press(view, ".again", () => act.again());
  press(view, ".earlier", () => act.earlier(turn));
  view.querySelector(".copy").hidden = !one.text;
  view.querySelector(".earlier").hidden = !turn.earlier?.length;
  if (turn.models) {
    const [kept, other] = turn.chosen ? [turn.models.second, turn.models.first] : [turn.models.first, turn.models.second];
    view.querySelector(".revealed").textContent = say("revealed", { kept, other });
  }
  if (turn.kept && one.id) listen(view, one, act);
  else view.querySelector(".feedback").hidden = true;
  return view;
}

// ---------------------------------------------------------------------------------------------------------- what is said of an answer

function listen(view, one, act) {
  const [why, flags, flag, reply] = [".why", ".flags", ".flag", ".reply"].map((name) => view.querySelector(name));
  const thumbs = [view.querySelector(".down"), view.querySelector(".up")]; // at the value of their vote
  const paint = () => {
    thumbs.forEach((thumb, value) => thumb.setAttribute("aria-pressed", one.vote === value));
    flag.setAttribute("aria-pressed", Boolean(one.flag));
    for (const button of why.querySelectorAll(".reason")) button.setAttribute("aria-pressed", button.value === one.reason);
    for (const button of flags.querySelectorAll(".reason")) button.setAttribute("aria-pressed", button.value === one.flag);
  };
  const send = async (body, thanks, change) => {
    const problem = await act.react({ completion_id: one.id, ...body });
    reply.textContent = problem ?? thanks;
    if (problem) return;
    change();
    paint();
    act.kept();
  };
  const open = (form, other) => {
    [form.hidden, other.hidden] = [false, true];
    form.scrollIntoView({ block: "nearest" });
  };
  const close = (form, next) => { form.hidden = true; next.focus(); };
  thumbs.forEach((thumb, value) => thumb.addEventListener("click", () => send({ kind: "vote", value }, "", () => {
    Object.assign(one, { vote: value, reason: null });
    open(why, flags);
  })));
  flag.addEventListener("click", () => flags.hidden ? open(flags, why) : close(flags, flag));
  offer(why, "reason", act.reasons(), (value) => { one.reason = one.reason === value ? null : value; paint(); });
  why.addEventListener("submit", (event) => {
    event.preventDefault();
    const said = { reason: one.reason, text: why.querySelector("input").value };
    send({ kind: "vote", value: one.vote, ...said }, say("thanks"), () => close(why, thumbs[one.vote]));
  });
  offer(flags, "flag", act.flags(), (reason) => send({ kind: "flag", reason }, say("flagged"), () => {
    one.flag = reason;
    close(flags, flag);
  }));
  paint();
}

function offer(form, kind, values, done) {
  form.querySelector("fieldset").append(...values.map((value) => {
    const button = copyOf("reason");
    Object.assign(button, { value, textContent: say(`${kind}_${value}`) });
    button.addEventListener("click", () => done(value));
    return button;
  }));
}

// ---------------------------------------------------------------------------------------------------------- two answers

function comparison(turn, act) {
  const view = copyOf("comparison");
  view.querySelectorAll(".text").forEach((box, place) => fill(box, turn.answers[place], turn));
  for (const button of view.querySelectorAll(".vote button")) button.addEventListener("click", () => act.vote(turn, button.value));
  view.querySelector(".reply").textContent = turn.refused ?? "";
  return view;
}
