/**
 * The fenced blocks of a Markdown page, in order: `language` and `file` from the fence (```js verify.mjs), `text`, the `line` of the fence, and the
 * `prose` since the block before.
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
