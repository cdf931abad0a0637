import assert from "node:assert/strict";
import { mkdirSync, rmSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { after, before, test } from "node:test";
import { clone, paste } from "../paste.mjs";
import { startRunner } from "../runner.mjs";

const logs = fileURLToPath(new URL("../../../target/docs/", import.meta.url));
const fence = (language, text) => `\`\`\`${language}\n${text}\n\`\`\`\n`;

let runner;
before(async () => {
  mkdirSync(logs, { recursive: true });
  runner = await startRunner(["--ephemeral"], `${logs}test.log`);
});
after(() => runner.stop());

async function run(...lines) {
  const folder = clone();
  try {
    return await paste("page.md", lines.join(""), { start: runner.start, folder });
  } finally {
    rmSync(folder, { recursive: true });
  }
}

const START = fence("sh", "export KARTA_API_KEY=kt_live_…\nexport KARTA_BASE_URL=http://127.0.0.1:8787");
const WHOAMI = fence("sh", `curl -s $KARTA_BASE_URL/v1/whoami -H "Authorization: Bearer $KARTA_API_KEY" | node -p 'JSON.parse(fs.readFileSync(0)).kind'`);

test("a correct page passes", async () => {
  const program = `Save as \`a.mjs\`:\n${fence("js a.mjs", 'console.log(JSON.stringify({ a: "b" }))')}`;
  const count = await run(START, WHOAMI, fence("text", "api_key"), program, fence("sh", "node a.mjs"), fence("json", '{"a":"b"}'));
  assert.deepEqual(count, { run: 4, compared: 2, replaced: 0 });
});

for (const [what, page, fault] of [
  ["a different answer", [START, WHOAMI, fence("text", "session")], /^page\.md:8: the text block line 1 is printed as session but was api_key$/],
  ["a failing command", [START, fence("sh", "true\nls /nowhere\ntrue")], /^page\.md:5: the sh block .*failed with 2: ls \/nowhere/s],
  ["an answer that is not printed", [START, fence("sh", "curl -s $KARTA_BASE_URL/healthz")], /^page\.md:5: .*has no printed answer, but the answer was .*ok/],
  ["an error that is not printed", [START, fence("sh", "curl -s $KARTA_BASE_URL/v1/whoami"), fence("json", '{"kind":"api_key"}')], /^page\.md:8: .*has the fields detail,message,request_id/],
  ["an answer before any command", [fence("json", "{}")], /^page\.md:1: .*nothing was run before it/],
  ["an unexplained placeholder", [fence("sh", "echo eyJ0eXAi…")], /^page\.md:1: .*placeholder that no answer explains: eyJ0eXAi…/],
  ["an unsupported language", [fence("ruby", "puts 1")], /^page\.md:1: .*unsupported language ruby/],
  ["a program without a file name", [fence("js", "1")], /^page\.md:1: .*needs a file name/],
  ["a file name missing in the prose", [fence("js a.mjs", "1")], /^page\.md:1: .*does not say to save it as a\.mjs/],
  ["a program that is not started", [`\`a.mjs\`\n${fence("js a.mjs", "1")}`], /^page\.md:2: .*never started/],
  ["a block without an end", ["```sh\ntrue\n"], /^the block in line 1 has no end/],
  ["a type error", [`\`a.mjs\`\n${fence("ts a.mjs", "export const a: string = 1;")}`, fence("sh", "node a.mjs")], /^page\.md:5: .*does not type-check: .*not assignable/s],
]) {
  test(`${what} fails`, async () => {
    await assert.rejects(run(...page), ({ message }) => {
      assert.match(message, fault);
      return true;
    });
  });
}
