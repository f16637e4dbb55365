// A ranking: every answer stays where it is, and is given a place by a digit, by buttons, or by dragging it onto one. Equal places are ties.
const cards = (form) => [...form.querySelectorAll(".answer")];
const select = (card) => card.querySelector("select[name^='place_']");
const chosen = (form) => form.querySelector(".answer.chosen");

export const unplaced = (form) => [...form.querySelectorAll("select[name*='place_']")].filter((one) => !one.value).length;

// What is seen of the places: the digits, and who stands on each.
export function draw(form) {
  for (const card of cards(form)) card.querySelector(".digit").textContent = select(card).value;
  for (const button of form.querySelectorAll("[data-place]")) {
    const here = cards(form).filter((card) => select(card).value === button.dataset.place);
    button.lastElementChild.textContent = here.map((card) => letter(card)).join(" = ");
  }
  const left = unplaced(form);
  form.querySelector(".why").textContent = left ? form.dataset.unplaced.replace("{what}", left) : "";
  form.querySelector(".send").setAttribute("aria-disabled", left > 0);
}

const letter = (card) => card.querySelector("h2").textContent.trim().at(-1);

export function choose(form, card) {
  chosen(form)?.classList.remove("chosen");
  card.classList.add("chosen");
}

function give(form, card, place) {
  const most = cards(form).length;
  select(card).value = place === null ? "" : Math.min(Math.max(place, 1), most);
  select(card).dispatchEvent(new Event("change", { bubbles: true }));
  choose(form, card);
}

// Gives the chosen card a place, and goes on to the next that has none.
function giveChosen(form, place) {
  const card = chosen(form) ?? cards(form)[0];
  give(form, card, place);
  const all = cards(form), after = [...all.slice(all.indexOf(card)), ...all];
  const next = place === null ? null : after.find((one) => !select(one).value);
  if (next) reveal(form, next);
}

function reveal(form, card) {
  choose(form, card);
  card.scrollIntoView({ block: "nearest" });
}

function sameAsAbove(form, card) {
  const above = cards(form)[cards(form).indexOf(card) - 1];
  if (above && select(above).value) give(form, card, Number(select(above).value));
}

// Whether the key meant something here.
export function key(form, name) {
  const all = cards(form), at = all.indexOf(chosen(form));
  if (name === "ArrowDown" || name === "ArrowUp") {
    const to = at < 0 ? 0 : at + (name === "ArrowDown" ? 1 : -1);
    if (all[to]) reveal(form, all[to]);
  } else if (/^[1-9]$/.test(name)) {
    if (Number(name) <= all.length) giveChosen(form, Number(name));
  } else if (name === "0" || name === "Backspace") giveChosen(form, null);
  else if (name === "=") sameAsAbove(form, chosen(form) ?? all[0]);
  else return false;
  return true;
}

// Whether a press of the pointer meant something here.
export function press(form, target) {
  const card = target.closest(".answer"), { place, nudge } = target.closest("button")?.dataset ?? {};
  if (place) giveChosen(form, Number(place));
  else if (card && nudge) give(form, card, (Number(select(card).value) || (nudge < 0 ? cards(form).length + 1 : 0)) + Number(nudge));
  else if (card && target.closest("[data-same]")) sameAsAbove(form, card);
  else if (card && !target.closest("summary, select, input, textarea")) choose(form, card);
  else return false;
  return true;
}

let dragged = null;

export function watchDrags(formNow) {
  const slot = (event) => dragged && event.target.closest?.("[data-place]");
  document.addEventListener("dragstart", (event) => {
    dragged = event.target.closest?.(".answer header[draggable]")?.parentElement ?? null;
    if (dragged) event.dataTransfer.setData("text/plain", letter(dragged));
  });
  document.addEventListener("dragover", (event) => slot(event) && event.preventDefault());
  document.addEventListener("dragenter", (event) => {
    document.querySelector(".over")?.classList.remove("over");
    (slot(event) || null)?.classList.add("over");
  });
  document.addEventListener("drop", (event) => {
    if (!slot(event)) return;
    event.preventDefault();
    give(formNow(), dragged, Number(slot(event).dataset.place));
  });
  document.addEventListener("dragend", () => {
    document.querySelector(".over")?.classList.remove("over");
    dragged = null;
  });
}

export function begin(form) {
  for (const card of cards(form)) card.querySelector("header").draggable = true;
  choose(form, cards(form)[0]);
  draw(form);
}
