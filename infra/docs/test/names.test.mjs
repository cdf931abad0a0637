// Checks that pages, the client and the runner's output use the same names of environment
// variables.
import assert from "node:assert/strict";
import { readFileSync, readdirSync } from "node:fs";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { join } from "node:path";
import { blocks } from "../page.mjs";

const root = fileURLToPath(new URL("../../..", import.meta.url));
const read = (path) => readFileSync(join(root, path), "utf8");
const PAGES = ["README.md", "CONTRIBUTING.md", "sdk/typescript/README.md", "sdk/sessions/README.md", ...readdirSync(join(root, "docs")).filter((name) => name.endsWith(".md")).map((name) => `docs/${name}`)];

/** The caller's variables, and patterns of their use in shell blocks. */
const VARIABLES = [
  { name: "KARTA_BASE_URL", uses: [/export (\w+)=http/g, /curl[^\n$]*[\s"]\$\{?(\w+)\}?\//g] },
  { name: "KARTA_API_KEY", uses: [/export (\w+)=kt_live_/g] },
];

const shell = PAGES.map((page) => ({ page, text: blocks(read(page)).filter(({ language }) => language === "sh").map(({ text }) => text).join("\n") }));

for (const { name, uses } of VARIABLES) {
  test(`every page uses the name ${name}`, () => {
    const found = shell.flatMap(({ page, text }) => uses.flatMap((use) => [...text.matchAll(use)].map(([, given]) => ({ page, given }))));
    assert.ok(found.length > 2, "the search finds nothing");
    assert.deepEqual(found.filter(({ given }) => given !== name), []);
  });

  test(`the runner and the client's README name ${name}`, () => {
    assert.match(read("infra/local/src/cli.rs"), new RegExp(`export ${name}=`));
    assert.match(read("sdk/typescript/README.md"), new RegExp(`\\b${name}\\b`));
  });
}

test("the clients read KARTA_BASE_URL", () => {
  assert.deepEqual([...read("sdk/shared/src/options.ts").matchAll(/environment\("(\w+)"\)/g)].map(([, name]) => name), ["KARTA_BASE_URL"]);
});
