// Runs the blocks of the pages in order and compares their output with the page. Fails if the
// output differs, or if a block is neither run nor listed in REPLACED_BLOCKS.
import { readFileSync, rmSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { join } from "node:path";
import { blocks } from "./page.mjs";
import { clone, paste } from "./paste.mjs";
import { startRunner } from "./runner.mjs";

const root = fileURLToPath(new URL("../..", import.meta.url));
const PAGES = ["README.md", "docs/quickstart.md", "docs/migration.md"];

/** Blocks that are not run: the reason, and the commands that are run instead, if any. */
const REPLACED_BLOCKS = {
  "cargo run -- --demo\n": { why: "the check starts the same runner on a free port: `karta --demo --json --port 0`, with its data in a temporary folder" },
  "cargo test --workspace\n": { why: "a separate step: `just test`" },
  "sam build && sam deploy --config-env prod\njust bootstrap prod acme                   # the first organization, and its key, once\n": {
    why: "deploys to AWS; `just deploy-rehearsal` deploys to an emulated AWS",
  },
  "python3 -m http.server 4000 --bind 127.0.0.1\n": { why: "serves until Ctrl-C; the page's script runs in Node.js, and its preflight is run as a command" },
  "npm install jose\npython3 -m venv venv && venv/bin/pip install PyJWT\n": {
    why: "installs the same two libraries with the lock files of `just interop`",
    instead: `
      cp "${root}"/infra/interop/{package,package-lock}.json . && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
      python3 -m venv venv
      venv/bin/pip install --quiet --disable-pip-version-check --require-hashes --requirement "${root}/infra/interop/requirements.txt"`,
  },
};

const pages = PAGES.map((page) => ({ page, markdown: readFileSync(join(root, page), "utf8") }));
const printed = new Set(pages.flatMap(({ markdown }) => blocks(markdown)).map(({ text }) => text));
for (const text of Object.keys(REPLACED_BLOCKS)) {
  if (!printed.has(text)) throw new Error(`no page prints this block of REPLACED_BLOCKS: ${text}`);
}
const log = join(root, "target/docs/karta.log");

async function pasteInNewFolder(page, markdown) {
  const folder = clone();
  try {
    const runner = await startRunner(["--demo", "--data-dir", join(folder, ".karta")], log);
    const pasted = paste(page, markdown, { start: runner.start, folder, replacements: REPLACED_BLOCKS });
    return await pasted.finally(() => runner.stop());
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/** Runs a page up to three times in total while a busy machine causes a 503 or 504. */
async function pasteWithRetries(page, markdown, attempts = 3) {
  try {
    return await pasteInNewFolder(page, markdown);
  } catch (error) {
    if (attempts === 1 || !/"status":50[34]|authorization failed/.test(readFileSync(log, "utf8"))) throw error;
    console.log(`docs: ${page}: retrying, because the runner was too slow: ${error.message}`);
    return pasteWithRetries(page, markdown, attempts - 1);
  }
}

for (const { page, markdown } of pages) {
  const { run, compared, replaced } = await pasteWithRetries(page, markdown);
  console.log(`docs: ${page}: ${run} blocks run, ${compared} answers compared, ${replaced} blocks replaced`);
}
