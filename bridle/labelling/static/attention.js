// How long somebody really looks: no longer than a minute after they last moved, and never while the page is hidden.
const IDLE = 60_000;
let last = null, seen = 0;

function note() {
  const now = performance.now(), visible = document.visibilityState === "visible";
  if (last !== null) seen += Math.min(now - last, IDLE);
  last = visible ? now : null;
}

export function watch() {
  for (const kind of ["pointermove", "pointerdown", "keydown", "scroll", "visibilitychange"]) {
    document.addEventListener(kind, note, { capture: true, passive: true });
  }
}

export function begin(secondsBefore) {
  seen = (Number(secondsBefore) || 0) * 1000;
  last = document.visibilityState === "visible" ? performance.now() : null;
}

export function seconds() {
  note();
  return (seen / 1000).toFixed(1);
}

// After the browser has painted: two frames, the first of which is before it.
export const painted = () => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
