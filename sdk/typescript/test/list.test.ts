import assert from "node:assert/strict";
import { test } from "node:test";
import { KartaArgumentError, KartaResponseError, type ApiKey, type Karta } from "@karta/sdk";
import { failure, json, scripted, type Sent } from "./support.js";

/** A scripted server with `count` keys, newest first, that returns pages as the API does. */
function keys(count: number) {
  return scripted([
    ({ url }: Sent) => {
      const query = new URL(url).searchParams;
      const start = Number(query.get("cursor") ?? 0);
      const end = Math.min(count, start + Number(query.get("limit")));
      const page = Array.from({ length: end - start }, (_, at) => ({ id: count - start - at }));
      return json(200, { api_keys: page, next_cursor: end < count ? String(end) : null });
    },
  ]);
}

test("an awaited list returns all items", async () => {
  for (const [count, requests] of [[0, 1], [1, 1], [100, 1], [101, 2], [250, 3]] as const) {
    const { karta, sent } = keys(count);
    const all = await karta.apiKeys.list();
    assert.ok(Array.isArray(all));
    assert.deepEqual(all.map(({ id }) => id), Array.from({ length: count }, (_, at) => count - at));
    assert.equal(sent.length, requests);
  }
});

test("an iterated list fetches pages on demand", async () => {
  const { karta, sent } = keys(250);
  const seen: ApiKey[] = [];
  for await (const key of karta.apiKeys.list()) {
    seen.push(key);
    if (seen.length === 100) assert.equal(sent.length, 1);
    if (seen.length === 101) break;
  }
  assert.equal(sent.length, 2);
});

test("a limit counts the items of all pages", async () => {
  for (const [limit, pages] of [[1, ["1"]], [100, ["100"]], [130, ["100", "30"]], [300, ["100", "100", "100"]]] as const) {
    const { karta, sent } = keys(250);
    assert.equal((await karta.apiKeys.list({ limit })).length, Math.min(limit, 250));
    assert.deepEqual(sent.map(({ url }) => new URL(url).searchParams.get("limit")), pages);
  }
  const generous = scripted([json(200, { api_keys: [{ id: 3 }, { id: 2 }, { id: 1 }], next_cursor: "a" })]);
  assert.equal((await generous.karta.apiKeys.list({ limit: 2 })).length, 2);
  for (const limit of [0, -1, 1.5, Number.NaN]) {
    assert.ok((await failure(() => keys(1).karta.apiKeys.list({ limit }))) instanceof KartaArgumentError);
  }
});

test("a page has the cursor of the next", async () => {
  const { karta } = keys(5);
  const first = await karta.apiKeys.list({ limit: 3 }).page();
  assert.deepEqual([first.items.length, first.next_cursor], [3, "3"]);
  const second = await karta.apiKeys.list({ limit: 3, cursor: first.next_cursor }).page();
  assert.deepEqual([second.items.length, second.next_cursor], [2, null]);
});

test("short or empty pages do not end lists", async () => {
  const { karta } = scripted([
    json(200, { api_keys: [], next_cursor: "a" }),
    json(200, { api_keys: [{ id: 2 }], next_cursor: "b" }),
    json(200, { api_keys: [{ id: 1 }], next_cursor: null }),
  ]);
  assert.deepEqual((await karta.apiKeys.list({ status: "revoked" })).map(({ id }) => id), [2, 1]);
});

test("every page is requested with the filters", async () => {
  const { karta, sent } = keys(150);
  await karta.apiKeys.list({ status: ["active", "rotating"], unused_days: 90, expires_within_days: undefined });
  for (const { url } of sent) assert.match(url, /\?status=active%2Crotating&unused_days=90&limit=100/);
  assert.equal(sent.length, 2);
});

test("a list is fetched on first use only", async () => {
  const { karta, sent } = keys(3);
  const list = karta.apiKeys.list();
  await new Promise((resolve) => setTimeout(resolve, 1));
  assert.equal(sent.length, 0);
  const [one, other] = await Promise.all([list, list.then((all) => all)]);
  assert.equal(one, other);
  assert.equal(sent.length, 1);
});

test("a list implements then, catch and finally", async () => {
  const { karta } = scripted([json(403, { detail: "missing scope: read" })]);
  let settled = false;
  const caught = await karta.apiKeys.list().finally(() => (settled = true)).catch((error: Error) => error.name);
  assert.deepEqual([caught, settled], ["KartaForbiddenError", true]);
  assert.equal(await karta.apiKeys.list().catch(() => "caught"), "caught");
  assert.equal(String(karta.apiKeys.list()), "[object List]");
});

test("repeated cursors and missing lists are response errors", async () => {
  const circle = scripted([json(200, { api_keys: [{ id: 1 }], next_cursor: "a" })]);
  let seen = 0;
  const error = await failure(async () => {
    for await (const { id } of circle.karta.apiKeys.list()) if ((seen += id) > 5) throw new Error("the list does not end");
  });
  assert.ok(error instanceof KartaResponseError, String(error));
  for (const cursors of [["a", "b"], ["a", "b", "c"], ["a", "b", "c", "b"]]) {
    let asked = 0;
    const answer = () => json(200, { api_keys: [], next_cursor: cursors[asked++ % cursors.length] });
    const again = await failure(() => scripted([answer]).karta.apiKeys.list({ cursor: "start" }));
    assert.ok(again instanceof KartaResponseError, String(again));
    assert.equal(asked, Math.min(cursors.length + 1, 4));
  }
  const none = scripted([json(200, { ok: true })]);
  assert.match(String(await failure(() => none.karta.apiKeys.list())), /no list "api_keys"/);
});

test("an invalid next_cursor is a response error", async () => {
  for (const body of [{}, { next_cursor: 7 }, { next_cursor: {} }, { next_cursor: false }, { next_cursor: ["a"] }]) {
    const { karta, sent } = scripted([json(200, { api_keys: [{ id: 1 }], ...body })]);
    for (const use of [() => karta.apiKeys.list(), () => karta.apiKeys.list().page()]) {
      const error = await failure(use);
      assert.ok(error instanceof KartaResponseError, String(error));
      assert.match(error.message, /no valid next_cursor/);
    }
    assert.equal(sent.length, 2);
  }
});

test("an empty response to a read is a response error", async () => {
  for (const status of [200, 202, 204]) {
    for (const read of [(karta: Karta) => karta.apiKeys.list(), (karta: Karta) => karta.usage.summary(), (karta: Karta) => karta.apiKeys.get(1)]) {
      const error = await failure(() => read(scripted([new Response(null, { status })]).karta));
      assert.ok(error instanceof KartaResponseError, `${status} ${read}: ${String(error)}`);
    }
  }
});
