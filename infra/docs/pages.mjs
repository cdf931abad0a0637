// Runs what the pages print, block by block. A block that is not run, and not in the list here with the reason, is a failure; so is one that prints
// another thing than the page says.
import { readFileSync, rmSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { join } from "node:path";
import { blocks } from "./page.mjs";
import { clone, paste } from "./paste.mjs";
import { startRunner } from "./runner.mjs";

const root = fileURLToPath(new URL("../..", import.meta.url));
const PAGES = ["README.md", "docs/quickstart.md", "docs/migration.md"];

/** Blocks that are not pasted, why, and what is done instead. */
const OTHERWISE = {
  "cargo run\n": { why: "the check starts the same runner, built already, on a free port: `karta --json --port 0`, its data in a folder of its own" },
  "cargo test --workspace\n": { why: "a step of its own: `just test`" },
  "sam build && sam deploy --config-env prod\njust bootstrap prod acme                   # the first organization, and its key, once\n": {
    why: "deploys to AWS; `just deploy-rehearsal` does it against an emulated one",
  },
  "python3 -m http.server 4000 --bind 127.0.0.1\n": { why: "serves until Ctrl-C; the page's script is run in Node.js, and its preflight is pasted" },
  "npm install jose\npython3 -m venv venv && venv/bin/pip install PyJWT\n": {
    why: "the same two are installed, locked as `just interop` has them",
    instead: `
      cp "${root}"/infra/interop/{package,package-lock}.json . && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
      python3 -m venv venv
      venv/bin/pip install --quiet --disable-pip-version-check --require-hashes --requirement "${root}/infra/interop/requirements.txt"`,
  },
};

const pages = PAGES.map((page) => ({ page, markdown: readFileSync(join(root, page), "utf8") }));
const printed = new Set(pages.flatMap(({ markdown }) => blocks(markdown)).map(({ text }) => text));
for (const text of Object.keys(OTHERWISE)) {
  if (!printed.has(text)) throw new Error(`no page prints what is in the list of blocks that are not pasted: ${text}`);
}
const log = join(root, "target/docs/karta.log");

async function pasteAfresh(page, markdown) {
  const folder = clone();
  try {
    const runner = await startRunner(["--data-dir", join(folder, ".karta")], log);
    const pasted = paste(page, markdown, { start: runner.start, folder, otherwise: OTHERWISE });
    return await pasted.finally(() => runner.stop());
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/** On a machine that is too busy a verdict comes too late, and is a 503 or 504: then the page is pasted once more, up to three times in all. */
async function pasteUntilQuiet(page, markdown, attempts = 3) {
  try {
    return await pasteAfresh(page, markdown);
  } catch (error) {
    if (attempts === 1 || !/"status":50[34]|undecided/.test(readFileSync(log, "utf8"))) throw error;
    console.log(`docs: ${page}: once more, for there was no verdict in time: ${error.message}`);
    return pasteUntilQuiet(page, markdown, attempts - 1);
  }
}

for (const { page, markdown } of pages) {
  const { run, compared, otherwise } = await pasteUntilQuiet(page, markdown);
  console.log(`docs: ${page}: ${run} blocks run, ${compared} answers compared, ${otherwise} done otherwise`);
}
