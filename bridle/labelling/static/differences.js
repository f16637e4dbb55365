// Which words of two texts the other has not, by their longest common subsequence. Texts too long for that are compared by their lines.
const MOST_CELLS = 6_000_000;
const WORDS = /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}]|[\p{L}\p{N}_]+|\s+|[^]/gu;
const LINES = /[^\n]+\n?|\n/g;

// For each text its pieces, each with whether it is in it alone; null where even lines are too many.
export function differences(left, right) {
  for (const pieces of [WORDS, LINES]) {
    const found = compare(left.match(pieces) ?? [], right.match(pieces) ?? []);
    if (found) return found;
  }
  return null;
}

function compare(a, b) {
  let start = 0, end = 0;
  while (start < Math.min(a.length, b.length) && a[start] === b[start]) start += 1;
  while (end < Math.min(a.length, b.length) - start && a.at(-1 - end) === b.at(-1 - end)) end += 1;
  const rows = a.length - start - end, columns = b.length - start - end;
  if (rows * columns > MOST_CELLS) return null;
  const wide = columns + 1, common = new Uint16Array((rows + 1) * wide);
  for (let i = rows - 1; i >= 0; i -= 1) {
    for (let j = columns - 1; j >= 0; j -= 1) {
      const here = i * wide + j;
      common[here] = a[start + i] === b[start + j] ? common[here + wide + 1] + 1 : Math.max(common[here + wide], common[here + 1]);
    }
  }
  const alone = [new Array(a.length).fill(false), new Array(b.length).fill(false)];
  for (let i = 0, j = 0; i < rows || j < columns;) {
    if (i < rows && j < columns && a[start + i] === b[start + j]) { i += 1; j += 1; }
    else if (j >= columns || (i < rows && common[(i + 1) * wide + j] >= common[i * wide + j + 1])) { alone[0][start + i] = true; i += 1; }
    else { alone[1][start + j] = true; j += 1; }
  }
  return [a, b].map((pieces, side) => pieces.map((piece, at) => [piece, alone[side][at]]));
}

export function show(boxes) {
  const found = differences(...boxes.map((box) => box.textContent));
  found?.forEach((pieces, side) => {
    const nodes = [];
    for (const [at, [piece, apart]] of pieces.entries()) {
      const alone = apart || (!piece.trim() && !piece.includes("\n") && pieces[at - 1]?.[1] && pieces[at + 1]?.[1]);
      if (nodes.length && nodes.at(-1).alone === alone) nodes.at(-1).text += piece;
      else nodes.push({ alone, text: piece });
    }
    boxes[side].replaceChildren(...nodes.map(({ alone, text }) => alone && text.trim() ? marked(text) : document.createTextNode(text)));
  });
  return found !== null;
}

function marked(text) {
  const mark = document.createElement("mark");
  mark.textContent = text;
  return mark;
}

export function hide(boxes) {
  for (const box of boxes) box.textContent = box.textContent;
}
