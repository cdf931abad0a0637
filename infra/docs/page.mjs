/**
 * Returns the fenced blocks of a Markdown page in order: `language` and `file` from the fence
 * (```js verify.mjs), `text`, the `line` of the fence, and the `prose` since the previous block.
 */
export function blocks(markdown) {
  const found = [];
  let block;
  let prose = "";
  markdown.split("\n").forEach((line, at) => {
    const fence = line.match(/^```(\S*) ?(.*)$/);
    if (!fence) {
      if (block) block.text += `${line}\n`;
      else prose += `${line}\n`;
    } else if (block) {
      found.push(block);
      block = undefined;
      prose = "";
    } else block = { language: fence[1], file: fence[2], text: "", line: at + 1, prose };
  });
  if (block) throw new Error(`the block in line ${block.line} has no end`);
  return found;
}

/** Returns a page's lines, with empty lines instead of its blocks. */
function proseLines(markdown) {
  let isCode = false;
  return markdown.split("\n").map((line) => {
    const isFence = line.trimStart().startsWith("```");
    if (isFence) isCode = !isCode;
    return isFence || isCode ? "" : line;
  });
}

/** Returns the links to files of the repository: their `target` and `line`. */
export function links(markdown) {
  return proseLines(markdown).flatMap((line, at) =>
    [...line.matchAll(/\]\(([^)\s]+)\)/g)].map(([, target]) => ({ target, line: at + 1 })).filter(({ target }) => !/^[a-z]+:/.test(target)),
  );
}

/** Returns the anchors that GitHub gives a page's headings. */
export function anchors(markdown) {
  const seen = new Map();
  return new Set(
    proseLines(markdown).flatMap((line) => {
      const heading = line.match(/^#+ (.*)$/);
      if (!heading) return [];
      const name = heading[1].toLowerCase().replace(/[^\p{L}\p{N}\s_-]/gu, "").replaceAll(" ", "-");
      const before = seen.get(name) ?? 0;
      seen.set(name, before + 1);
      return [before === 0 ? name : `${name}-${before}`];
    }),
  );
}
