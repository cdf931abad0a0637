import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { Shell } from "../shell.mjs";

let shell;
before(() => {
  shell = new Shell("/", process.env);
});
after(() => shell.close());

test("exports and working directory are kept", async () => {
  assert.equal(await shell.run("export A=1\ncd /usr\necho done >&2\n"), "");
  assert.equal(await shell.run("echo $A; pwd"), "1\n/usr\n");
});

for (const [block, message] of [
  ["true\nls /nowhere\ntrue\n", /failed with 2: ls \/nowhere/],
  ["echo x | false", /failed with 1/],
  ["A=$(false)", /failed with 1: A=\$\(false\)/],
  ["(cd /nowhere && true)", /No such file/],
  ["cd /nowhere && true", /ended with 1/],
  ["if", /syntax error/],
  ["exit 3", /ended the shell with 3/],
]) {
  test(`${JSON.stringify(block)} fails`, async () => {
    const own = new Shell("/", process.env);
    try {
      await assert.rejects(own.run(block), { message });
    } finally {
      await own.close();
    }
  });
}

test("a block that hangs fails", () => {
  const own = new Shell("/", process.env);
  return assert.rejects(own.run("sleep 60", 0.1), /did not end within 0.1 s/).finally(() => own.close());
});
