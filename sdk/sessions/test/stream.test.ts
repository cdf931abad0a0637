// Tests streams: their events, resumption after every cut, and how they end.
import assert from "node:assert/strict";
import { Readable } from "node:stream";
import { after, beforeEach, test } from "node:test";
import { inspect } from "node:util";
import {
  KartaAbortError,
  KartaArgumentError,
  KartaAuthError,
  KartaConflictError,
  KartaConnectionError,
  KartaForbiddenError,
  KartaNotFoundError,
  KartaResponseError,
  KartaServerError,
  KartaSessions,
  KartaTimeoutError,
  KartaUnavailableError,
  type TurnEvent,
  type TurnStream,
} from "@karta/sessions";
import { FakeServer } from "./server.js";
import { API_KEY, FRAMES, SESSION, TEXT, TOKEN, TURN, USAGE, collect, done, failed, failure, frame, json, reasoning, scripted, streamed, text, type Scripted, type Sent } from "./support.js";

const server = await FakeServer.start();
after(() => server.stop());
server.credentials.add(API_KEY);
const sessions = new KartaSessions({ apiKey: API_KEY, baseUrl: server.url, sleep: async () => {} });
let session = "";
beforeEach(async () => {
  session = (await sessions.create()).id;
  server.seen.length = 0;
  server.cuts.length = 0;
  server.pauseAfter = Infinity;
  server.eventsAreGone = false;
  server.headDelay = 0;
});

const BYTES = new TextEncoder().encode(FRAMES.join(": keep-alive\n\n"));
const SEQS = [1, 2, 3, 4, 5, 6, 7];
const seqs = (events: readonly TurnEvent[]) => events.map(({ seq }) => seq);
const paths = (requests: readonly { method: string; path: string }[]) => requests.map(({ method, path }) => `${method} ${path.replace(/^\/v1\/sessions\/sess_\w+/, "").replace(TURN, "TURN")}`);

/** Returns the events after the one that a request names, like the server. */
function replay({ url }: Sent): Response {
  const after = new URL(url).searchParams.get("after");
  return streamed(FRAMES.slice(Number(after?.split(".")[1] ?? 0)))();
}

test("a stream has the turn's events", async () => {
  const { sessions, sent } = scripted([streamed(FRAMES)]);
  const stream = sessions.stream(SESSION, { text: "hi", model: "gpt-x", max_tokens: 5, thinking: false });
  assert.deepEqual([sent.length, stream.turnId, stream.lastEventId], [0, undefined, undefined]);
  const events = await collect(stream);
  assert.deepEqual(events.map(({ type }) => type), ["reasoning", "text", "text", "text", "text", "text", "done"]);
  assert.deepEqual(events[1], {
    type: "text",
    session_id: SESSION,
    turn_id: TURN,
    seq: 2,
    timestamp: "2026-12-01T00:00:00.000Z",
    data: { part: { id: "part_1", type: "text", text: "Grüße" } },
    id: `${TURN}.2`,
  });
  assert.deepEqual(events.at(-1)?.data, { message_id: "msg_1", usage: USAGE, stop_reason: "end_turn" });
  assert.deepEqual([stream.turnId, stream.lastEventId, await stream.text()], [TURN, `${TURN}.7`, TEXT]);
  assert.deepEqual(await collect(stream), []);
  assert.equal(sent.length, 1);
  const [{ method, path, headers, body } = {} as never] = sent;
  assert.deepEqual([method, path, headers.get("accept")], ["POST", `/v1/sessions/${SESSION}/messages`, "text/event-stream"]);
  assert.deepEqual(body, { text: "hi", model: "gpt-x", max_tokens: 5, thinking: false, stream: true });
});

test("chunks of any size give the same events", async () => {
  const expected = await collect(scripted([streamed(FRAMES)]).sessions.stream(SESSION, { text: "hi" }));
  for (let at = 0; at <= BYTES.length; at++) {
    const { sessions } = scripted([streamed([BYTES.slice(0, at), BYTES.slice(at)])]);
    assert.deepEqual(await collect(sessions.stream(SESSION, { text: "hi" })), expected, `cut at byte ${at}`);
  }
  const { sessions } = scripted([streamed(Array.from(BYTES, (byte) => Uint8Array.of(byte)))]);
  assert.deepEqual(await collect(sessions.stream(SESSION, { text: "hi" })), expected);
});

test("a stream resumes after a cut at any byte", async () => {
  for (const ending of ["break", "end"] as const) {
    for (let at = 0; at <= BYTES.length; at++) {
      const { sessions, sent } = scripted([streamed([BYTES.slice(0, at)], ending), replay]);
      const stream = sessions.stream(SESSION, { text: "hi" });
      assert.deepEqual(seqs(await collect(stream)), SEQS, `cut at byte ${at}`);
      assert.equal(await stream.text(), TEXT);
      const [first, second] = sent;
      if (second === undefined) continue;
      if (second.method === "POST") assert.equal(second.headers.get("idempotency-key"), first?.headers.get("idempotency-key"));
      else assert.match(second.path, new RegExp(`/stream\\?after=${TURN}\\.[1-6]$`));
    }
  }
});

for (const cut of [0, 1, 2, 3, 4, 5, 6]) {
  test(`a connection lost after ${cut} events is resumed`, async () => {
    const turns = server.turns;
    server.cuts.push(cut);
    const stream = sessions.stream(session, { text: "hi" });
    assert.deepEqual(seqs(await collect(stream)), SEQS);
    assert.equal(await stream.text(), TEXT);
    assert.equal(server.turns, turns + 1);
    const again = cut === 0 ? "POST /messages" : `GET /stream?after=${stream.turnId}.${cut}`;
    assert.deepEqual(paths(server.seen), ["POST /messages", again]);
    const [first, second] = server.seen;
    if (cut === 0) assert.equal(second?.headers["idempotency-key"], first?.headers["idempotency-key"]);
  });
}

test("a connection lost after every event is resumed", async () => {
  server.cuts.push(1, 1, 1, 1, 1, 1);
  assert.deepEqual(seqs(await collect(sessions.stream(session, { text: "hi" }))), SEQS);
  assert.equal(server.seen.length, 7);
  server.cuts.push(0, 0, 2, 0, 0, 3, 0, 0, 1);
  const turns = server.turns;
  assert.equal(await sessions.stream(session, { text: "hi" }).text(), TEXT);
  assert.equal(server.turns, turns + 1);
});

test("a lost POST is repeated with its key", async () => {
  const starts: readonly Scripted[] = [new TypeError("fetch failed"), json(503, {}), json(429, { error: "rate_limited" }), streamed([], "break"), streamed([": keep-alive\n\n"], "end")];
  for (const start of starts) {
    const { sessions, sent, waits } = scripted([start, streamed(FRAMES)]);
    assert.equal(await sessions.stream(SESSION, { text: "hi" }).text(), TEXT);
    assert.deepEqual(sent.map(({ method }) => method), ["POST", "POST"]);
    assert.equal(new Set(sent.map(({ headers }) => headers.get("idempotency-key"))).size, 1);
    assert.deepEqual(waits, [250]);
  }
  const own = scripted([new TypeError("fetch failed"), streamed(FRAMES)]);
  await own.sessions.stream(SESSION, { text: "hi" }, { idempotencyKey: "order 1" }).text();
  assert.deepEqual(own.sent.map(({ headers }) => headers.get("idempotency-key")), ["order 1", "order 1"]);
  const bounded = scripted([new TypeError("fetch failed")]);
  assert.ok((await failure(() => bounded.sessions.stream(SESSION, { text: "hi" }).text())) instanceof KartaConnectionError);
  assert.equal(bounded.sent.length, 3);
  const once = scripted([new TypeError("fetch failed")]);
  await failure(() => once.sessions.stream(SESSION, { text: "hi" }, { maxRetries: 0 }).text());
  assert.equal(once.sent.length, 1);
});

test("attempts to resume are bounded and back off", async () => {
  for (const trouble of [new TypeError("fetch failed"), json(500, {}), json(502, {}), json(503, {}), json(429, {}), streamed([], "end"), streamed([": keep-alive\n\n"], "break")]) {
    const { sessions, sent, waits } = scripted([streamed(FRAMES.slice(0, 3), "break"), trouble]);
    const stream = sessions.stream(SESSION, { text: "hi" });
    const events: TurnEvent[] = [];
    const error = await failure(async () => {
      for await (const event of stream) events.push(event);
    });
    assert.ok(error instanceof KartaConnectionError || (trouble instanceof Response && trouble.status >= 400), String(error));
    assert.deepEqual(seqs(events), [1, 2, 3]);
    assert.equal(sent.length, 11);
    assert.deepEqual(waits, [250, 500, 1000, 2000, 4000, 4000, 4000, 4000, 4000, 4000]);
    assert.equal(stream.lastEventId, `${TURN}.3`);
  }
  const { sessions, sent } = scripted([streamed(FRAMES.slice(0, 3), "break"), new TypeError("fetch failed")], { maxReconnects: 0 });
  await failure(() => sessions.stream(SESSION, { text: "hi" }).text());
  assert.equal(sent.length, 1);
});

test("an event resets the attempts to resume", async () => {
  const lost = new TypeError("fetch failed");
  const script: Scripted[] = FRAMES.flatMap((each) => [lost, lost, streamed([each], "break")]);
  const { sessions } = scripted([streamed([], "break"), ...script], { maxReconnects: 3 });
  assert.equal(await sessions.stream(SESSION, { text: "hi" }).text(), TEXT);
});

test("an event is never returned twice", async () => {
  const { sessions } = scripted([streamed(FRAMES.slice(0, 4), "break"), streamed(FRAMES)]);
  const stream = sessions.stream(SESSION, { text: "hi" });
  assert.deepEqual(seqs(await collect(stream)), SEQS);
  assert.equal(await stream.text(), TEXT);
  const doubled = scripted([streamed([...FRAMES.slice(0, 3), ...FRAMES.slice(1)])]);
  assert.deepEqual(seqs(await collect(doubled.sessions.stream(SESSION, { text: "hi" }))), SEQS);
});

test("a missing event is requested, never skipped", async () => {
  const { sessions, sent } = scripted([streamed([...FRAMES.slice(0, 2), ...FRAMES.slice(4)]), replay]);
  assert.deepEqual(seqs(await collect(sessions.stream(SESSION, { text: "hi" }))), SEQS);
  assert.equal(sent[1]?.path, `/v1/sessions/${SESSION}/stream?after=${TURN}.2`);
  const early = scripted([streamed(FRAMES.slice(1)), streamed(FRAMES)]);
  assert.deepEqual(seqs(await collect(early.sessions.stream(SESSION, { text: "hi" }))), SEQS);
  const never = scripted([streamed([text(1, "a"), done(3)])], { maxReconnects: 2 });
  const error = await failure(() => never.sessions.stream(SESSION, { text: "hi" }).text());
  assert.ok(error instanceof KartaConnectionError);
  assert.match(error.message, /lacks the events between 1 and 3/);
});

test("the end of an interrupted turn may have any number", async () => {
  for (const seq of [2, 4, 5, 9]) {
    const { sessions } = scripted([streamed(FRAMES.slice(0, 4), "break"), streamed([failed(seq, "interrupted")])]);
    const stream = sessions.stream(SESSION, { text: "hi" });
    const events = await collect(stream);
    assert.deepEqual(events.map(({ type }) => type), ["reasoning", "text", "text", "text", "error"]);
    assert.ok((await failure(() => stream.text())) instanceof KartaServerError);
  }
});

test("a stream without its end is never complete", async () => {
  const { sessions } = scripted([streamed(FRAMES.slice(0, 6), "end")], { maxReconnects: 1 });
  const error = await failure(() => sessions.stream(SESSION, { text: "hi" }).text());
  assert.ok(error instanceof KartaConnectionError);
  assert.match(error.message, /ended before the turn did/);
});

test("gone events end the stream with an error", async () => {
  server.cuts.push(3);
  const stream = sessions.stream(session, { text: "hi" });
  const error = await failure(async () => {
    for await (const { seq } of stream) if (seq === 3) server.eventsAreGone = true;
  });
  assert.ok(error instanceof KartaConflictError && error.code === "no_turn_in_progress" && error.status === 409);
  assert.equal(error.message, `409: no events follow ${stream.turnId}.3: the turn ended or its events expired. Read its messages()`);
  assert.equal(error.requestId, "req_fake");
  assert.deepEqual(paths(server.seen), ["POST /messages", `GET /stream?after=${stream.turnId}.3`]);
  const early = await failure(() => sessions.follow(session).text());
  assert.ok(early instanceof KartaConflictError && early.code === "no_turn_in_progress");
  assert.equal(early.message, "409: No turn is running");
});

test("errors that no attempt can change end the stream", async () => {
  for (const [status, type] of [[403, KartaForbiddenError], [404, KartaNotFoundError], [401, KartaAuthError]] as const) {
    const { sessions, sent } = scripted([streamed(FRAMES.slice(0, 3), "break"), json(status, {})]);
    const error = await failure(() => sessions.stream(SESSION, { text: "hi" }).text());
    assert.ok(error instanceof type);
    assert.equal(sent.length, 2);
  }
});

test("events of other servers and turns are rejected", async () => {
  const envelope = { type: "text", turn_id: TURN, seq: 1, data: { part: { text: "a" } } };
  const damaged = [
    "data: {\n\n",
    "data: []\n\n",
    `data: "text"\n\n`,
    ...["type", "turn_id", "seq", "data"].map((name) => `data: ${JSON.stringify({ ...envelope, [name]: undefined })}\n\n`),
    frame(1, "text", {}),
    frame(1, "text", { part: { text: 7 } }),
    frame(1, "reasoning", { part: null }),
    frame(1, "done", {}),
    frame(1, "error", { code: 7 }),
    text(1, "a") + text(2, "b", "turn_other"),
  ];
  for (const frames of damaged) {
    const { sessions, sent } = scripted([streamed([frames, ...FRAMES])]);
    const error = await failure(() => sessions.stream(SESSION, { text: "hi" }).text());
    assert.ok(error instanceof KartaResponseError && error.requestId === "req_stream", `${frames}: ${String(error)}`);
    assert.equal(sent.length, 1);
  }
});

test("events of unknown types are skipped", async () => {
  const { sessions, sent } = scripted([streamed([text(1, "a"), frame(2, "tool", { name: "x" }), frame(3, "constructor", {})], "break"), streamed([text(4, "b"), done(5)])]);
  assert.equal(await sessions.stream(SESSION, { text: "hi" }).text(), "ab");
  assert.match(String(sent[1]?.path), /\.3$/);
});

test("frames without ids are resumed by their envelope", async () => {
  const bare = FRAMES.map((each) => each.replace(/^id: .*\n/, ""));
  const { sessions, sent } = scripted([streamed(bare.slice(0, 3), "break"), replay]);
  assert.equal(await sessions.stream(SESSION, { text: "hi" }).text(), TEXT);
  assert.match(String(sent[1]?.path), new RegExp(`after=${TURN}\\.3$`));
});

test("a silent stream is resumed", async () => {
  const { sessions, sent } = scripted([streamed([FRAMES[0] as string, ": keep-alive\n\n"], "hang"), streamed(FRAMES.slice(1), "hang")], { idleTimeout: 200 });
  assert.equal(await sessions.stream(SESSION, { text: "hi" }).text(), TEXT);
  assert.equal(sent.length, 2);
  const dead = scripted([streamed([], "hang")], { idleTimeout: 5, maxReconnects: 1 });
  const error = await failure(() => dead.sessions.stream(SESSION, { text: "hi" }).text());
  assert.ok(error instanceof KartaTimeoutError);
  assert.equal(error.message, "incomplete response from https://karta.test within 5 ms");
});

test("a slow reader is not a silent stream", async () => {
  const { sessions, sent } = scripted([streamed(FRAMES)], { idleTimeout: 300 });
  for await (const { seq } of sessions.stream(SESSION, { text: "hi" })) if (seq === 2) await new Promise((resolve) => setTimeout(resolve, 400));
  assert.equal(sent.length, 1);
});

test("leaving a stream keeps its place", async () => {
  for (const leaveAt of SEQS) {
    const { sessions, sent } = scripted([streamed(FRAMES), replay]);
    const stream = sessions.stream(SESSION, { text: "hi" });
    const events: TurnEvent[] = [];
    for await (const event of stream) {
      events.push(event);
      if (event.seq === leaveAt) break;
    }
    events.push(...(await collect(stream)));
    assert.deepEqual(seqs(events), SEQS);
    assert.equal(await stream.text(), TEXT);
    assert.deepEqual(paths(sent), ["POST /messages", ...(leaveAt === 7 ? [] : [`GET /stream?after=TURN.${leaveAt}`])]);
  }
});

test("leaving a stream closes its connection", async () => {
  let closed = 0;
  const body = new ReadableStream({ start: (controller) => controller.enqueue(new TextEncoder().encode(FRAMES[0])), cancel: () => void closed++ });
  const response = new Response(body, { headers: { "content-type": "text/event-stream" } });
  let signal: AbortSignal | null | undefined;
  const { sessions } = scripted([({ init }) => ((signal = init.signal), response)]);
  for await (const _ of sessions.stream(SESSION, { text: "hi" })) break;
  assert.deepEqual([closed, signal?.aborted], [1, true]);
});

test("a body that is no web stream is rejected", async () => {
  const timers = () => process.getActiveResourcesInfo().filter((kind) => kind === "Timeout").length;
  const before = timers();
  const { signal } = new AbortController();
  const listeners = new Set<unknown>();
  const { addEventListener, removeEventListener } = signal;
  signal.addEventListener = (...args: [string, never]) => (listeners.add(args[1]), addEventListener.apply(signal, args));
  signal.removeEventListener = (...args: [string, never]) => (listeners.delete(args[1]), removeEventListener.apply(signal, args));
  // Like a response of node-fetch 2.
  const response = new Response("", { headers: { "content-type": "text/event-stream" } });
  Object.defineProperty(response, "body", { value: Readable.from(FRAMES) });
  const { sessions, sent } = scripted([() => response, json(202, {})]);
  const stream = sessions.stream(SESSION, { text: "hi" }, { signal });
  const error = await failure(() => stream.text());
  assert.ok(error instanceof KartaArgumentError && error.field === "fetch", inspect(error));
  assert.equal(error.message, "fetch must return a web ReadableStream as body; node-fetch does not. Use the global fetch");
  assert.deepEqual([sent.length, sent[0]?.init.signal?.aborted, listeners.size, timers()], [1, true, 0, before]);
  // The turn runs.
  await stream.cancel();
  assert.deepEqual(paths(sent), ["POST /messages", "POST /cancel"]);
});

test("a stream has one reader", async () => {
  const stream = scripted([streamed(FRAMES)]).sessions.stream(SESSION, { text: "hi" });
  const [one, other] = await Promise.allSettled([stream.text(), stream.text()]);
  assert.equal(one.status === "fulfilled" && one.value, TEXT);
  assert.ok(other.status === "rejected" && other.reason instanceof KartaArgumentError);
  assert.equal(await stream.text(), TEXT);
});

test("an abort ends reading, not the turn", async () => {
  server.pauseAfter = 3;
  const reason = new Error("the user left");
  const controller = new AbortController();
  const stream = sessions.stream(session, { text: "hi" }, { signal: controller.signal });
  const events: TurnEvent[] = [];
  const error = await failure(async () => {
    for await (const event of stream) if (events.push(event) === 3) setTimeout(() => controller.abort(reason), 2);
  });
  assert.ok(error instanceof KartaAbortError && error.cause === reason, inspect(error));
  assert.deepEqual([seqs(events), server.turnStatus(session)], [[1, 2, 3], "running"]);
  assert.ok((await failure(() => stream.text())) instanceof KartaAbortError);
  assert.deepEqual(paths(server.seen), ["POST /messages"]);
  await stream.cancel();
  assert.equal(server.turnStatus(session), "cancelled");
  assert.deepEqual(seqs(await collect(sessions.follow(session, { after: stream.lastEventId }))), [4]);
});

test("an abort ends every phase of a stream", async () => {
  const reason = new Error("the user left");
  const never = () => new Promise<Response>(() => {});
  const phases: (readonly Scripted[])[] = [[never], [streamed([], "hang")], [streamed(FRAMES.slice(0, 2), "hang")], [streamed(FRAMES.slice(0, 2), "break"), never], [json(503, {}, { "retry-after": "20" })]];
  for (const script of phases) {
    const controller = new AbortController();
    const { sessions } = scripted([...script], { sleep: undefined, random: () => 0 });
    setTimeout(() => controller.abort(reason), 10);
    const error = await failure(() => sessions.stream(SESSION, { text: "hi" }, { signal: controller.signal }).text());
    assert.ok(error instanceof KartaAbortError && error.cause === reason, inspect(error));
  }
  const { sessions, sent } = scripted([streamed(FRAMES)]);
  const early = sessions.stream(SESSION, { text: "hi" }, { signal: AbortSignal.abort(reason) });
  assert.ok((await failure(() => early.text())) instanceof KartaAbortError);
  await early.cancel();
  assert.equal(sent.length, 0);
});

test("an abort between two reads ends the stream", async () => {
  // The stream ignores the signal of its request, or has more events in the same read.
  for (const script of [streamed(FRAMES.slice(0, 1), "hang"), streamed([FRAMES.join("")])]) {
    const controller = new AbortController();
    const stream = scripted([script]).sessions.stream(SESSION, { text: "hi" }, { signal: controller.signal });
    const error = await failure(async () => {
      for await (const _ of stream) controller.abort();
    });
    assert.ok(error instanceof KartaAbortError, inspect(error));
    assert.equal(stream.lastEventId, `${TURN}.1`);
  }
});

test("a cancel ends the turn of its stream", async () => {
  server.pauseAfter = 3;
  const stream = sessions.stream(session, { text: "hi" });
  const events: TurnEvent[] = [];
  for await (const event of stream) if (events.push(event) === 2) await stream.cancel();
  assert.deepEqual(server.seen.at(-1)?.body, { turn_id: stream.turnId });
  assert.deepEqual(seqs(events), [1, 2, 3, 4]);
  assert.equal(events.at(-1)?.type, "error");
  const error = await failure(() => stream.text());
  assert.ok(error instanceof KartaConflictError && error.code === "turn_cancelled");
  server.seen.length = 0;
  await stream.cancel();
  assert.equal(server.seen.length, 0);
});

test("a cancel waits for a turn that starts", async () => {
  server.pauseAfter = 0;
  server.headDelay = 20;
  const stream = sessions.stream(session, { text: "hi" });
  const reading = failure(() => stream.text());
  await stream.cancel();
  assert.equal(server.turnStatus(session), "cancelled");
  const error = await reading;
  assert.ok(error instanceof KartaConflictError && error.code === "turn_cancelled");
  assert.deepEqual(paths(server.seen), ["POST /messages", "POST /cancel"]);
});

test("a cancelled turn is never started again", async () => {
  const unread = scripted([streamed(FRAMES)]);
  const stream = unread.sessions.stream(SESSION, { text: "hi" });
  await stream.cancel();
  assert.ok((await failure(() => stream.text())) instanceof KartaAbortError);
  assert.equal(unread.sent.length, 0);

  // The response of the POST is lost, so the turn may be running.
  let lose = () => {};
  const lost = () => new Promise<Response>((_, reject) => (lose = () => reject(new TypeError("fetch failed"))));
  const { sessions, sent } = scripted([lost, json(409, { error: "no_turn_in_progress" })]);
  const starting = sessions.stream(SESSION, { text: "hi" });
  const reading = failure(() => starting.text());
  await new Promise((resolve) => setTimeout(resolve, 2));
  const cancelled = starting.cancel();
  lose();
  await cancelled;
  const error = await reading;
  assert.ok(error instanceof KartaAbortError && error.cause === undefined, inspect(error));
  assert.deepEqual(paths(sent), ["POST /messages", "POST /cancel"]);
});

test("a cancel spares turns of other clients", async () => {
  // The session's turn belongs to another client.
  const { sessions, sent } = scripted([json(409, { error: "turn_in_progress" })]);
  const stream = sessions.stream(SESSION, { text: "hi" });
  assert.ok((await failure(() => stream.text())) instanceof KartaConflictError);
  await stream.cancel();
  assert.equal(sent.length, 1);
});

test("a failed cancel throws its error", async () => {
  const { sessions } = scripted([streamed(FRAMES.slice(0, 2), "hang"), json(503, {})], { idleTimeout: 1000 });
  const stream = sessions.stream(SESSION, { text: "hi" });
  for await (const { seq } of stream) if (seq === 2) break;
  assert.ok((await failure(() => stream.cancel())) instanceof KartaUnavailableError);
});

test("a followed turn can be cancelled unread", async () => {
  server.pauseAfter = 2;
  const reading = failure(() => sessions.stream(session, { text: "hi" }).text());
  while (server.turnStatus(session) !== "running") await new Promise((resolve) => setTimeout(resolve, 1));
  await sessions.follow(session).cancel();
  assert.ok((await reading) instanceof KartaConflictError);
});

test("a follower resumes after every cut", async () => {
  server.cuts.push(Infinity);
  const { turnId } = await read(sessions.stream(session, { text: "hi" }));
  for (const after of [0, ...SEQS.slice(0, -1)]) {
    for (let cut = 0; cut < 7 - after; cut++) {
      server.cuts.push(cut);
      const stream = sessions.follow(session, after === 0 ? {} : { after: `${turnId}.${after}` });
      assert.deepEqual(seqs(await collect(stream)), SEQS.slice(after));
      assert.equal(stream.turnId, turnId);
    }
  }
  const error = await failure(() => collect(sessions.follow(session, { after: `${turnId}.7` })));
  assert.ok(error instanceof KartaConflictError && error.code === "no_turn_in_progress", inspect(error));
  const texts = ["", ", 世", "界 🌍\n\n", "", "!"];
  assert.equal(await sessions.follow(session, { after: `${turnId}.2` }).text(), texts.join(""));
  assert.equal(await sessions.follow(session).text(), TEXT);
});

test("a follower of a running turn waits for its end", async () => {
  server.pauseAfter = 4;
  const stream = sessions.stream(session, { text: "hi" });
  for await (const { seq } of stream) if (seq === 2) break;
  const follower = sessions.follow(session);
  const events: TurnEvent[] = [];
  for await (const event of follower) if (events.push(event) === 4) await follower.cancel();
  assert.deepEqual(seqs(events), [1, 2, 3, 4, 5]);
});

test("a token is renewed when a stream resumes", async () => {
  let asked = 0;
  const tokens = [TOKEN, TOKEN.replace("c2ln", "bmV3")];
  const { sessions, sent } = scripted([streamed(FRAMES.slice(0, 2), "break"), json(401, { detail: "Unauthorized" }), replay], { project: "my-app", sessionToken: () => String(tokens[asked++]) });
  assert.equal(await sessions.stream(SESSION, { text: "hi" }).text(), TEXT);
  assert.equal(asked, 2);
  assert.deepEqual(sent.map(({ headers }) => headers.get("authorization")), [TOKEN, TOKEN, tokens[1]].map((token) => `Bearer ${token}`));
  assert.ok(sent.every(({ path }) => path.startsWith("/v1/projects/my-app/sessions/")));
});

test("a rejected token does not start a turn twice", async () => {
  let asked = 0;
  const { sessions, sent } = scripted([json(401, {}), streamed(FRAMES)], { project: "my-app", sessionToken: () => (asked++, TOKEN) });
  assert.equal(await sessions.stream(SESSION, { text: "hi" }).text(), TEXT);
  assert.deepEqual([asked, sent.length], [2, 2]);
  assert.equal(new Set(sent.map(({ headers }) => headers.get("idempotency-key"))).size, 1);
});

test("secrets in an error event are removed from the error", async () => {
  const stream = scripted([streamed([failed(1, "provider_rejected", `Incorrect key sk-ant-0123456789abcdef for ${API_KEY}`)])]).sessions.stream(SESSION, { text: "hi" });
  const shown = inspect(await failure(() => stream.text()));
  assert.ok(!shown.includes("sk-ant") && !shown.includes(API_KEY) && shown.includes("[redacted]"), shown);
});

test("reasoning is not part of the text", async () => {
  const { sessions } = scripted([streamed([reasoning(1, "hm"), done(2)])]);
  assert.equal(await sessions.stream(SESSION, { text: "hi" }).text(), "");
});

/** Reads a stream to its end. */
async function read(stream: TurnStream): Promise<TurnStream> {
  await stream.text();
  return stream;
}
