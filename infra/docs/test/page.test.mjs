import assert from "node:assert/strict";
import { test } from "node:test";
import { anchors, blocks, links } from "../page.mjs";

test("blocks have language, file, text, line and prose", () => {
  const found = blocks("# A\n\nSave as `a.mjs`:\n\n```js a.mjs\n1\n\n2\n```\n```json\n{}\n```\n");
  assert.deepEqual(found, [
    { language: "js", file: "a.mjs", text: "1\n\n2\n", line: 5, prose: "# A\n\nSave as `a.mjs`:\n\n" },
    { language: "json", file: "", text: "{}\n", line: 10, prose: "" },
  ]);
});

test("only links to the repository's files are returned", () => {
  const page = "[a](b.md#c) [d](https://example.com)\n```sh\n[x](y)\n```\n![p](p.svg) [e](#f)\n";
  assert.deepEqual(links(page), [{ target: "b.md#c", line: 1 }, { target: "p.svg", line: 5 }, { target: "#f", line: 5 }]);
});

test("headings have the anchors of GitHub", () => {
  const page = "# GET /v1/api_keys/{id}\n## A `b`: c, d\n## Same\n## Same\n```sh\n# no heading\n```\n";
  assert.deepEqual([...anchors(page)], ["get-v1api_keysid", "a-b-c-d", "same", "same-1"]);
});
