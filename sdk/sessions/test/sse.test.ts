// Tests the parser of server-sent events: cuts at every byte, line breaks, fields and bounds.
import assert from "node:assert/strict";
import { test } from "node:test";
import { KartaError } from "@karta/sessions";
import { SseParser, type Frame } from "../src/sse.js";

const encoder = new TextEncoder();

/** Returns the frames of `chunks`. */
function parse(...chunks: (string | Uint8Array)[]): Frame[] {
  const parser = new SseParser();
  return chunks.flatMap((chunk) => parser.push(typeof chunk === "string" ? encoder.encode(chunk) : chunk));
}

const LINES = [
  ": keep-alive",
  "",
  "id: turn_1.1",
  "event: text",
  `data: {"text":"Grüße, 世界 🌍"}`,
  "",
  "retry: 10",
  "data:first",
  "data",
  "data:  second: third",
  ": comment within",
  "unknown: field",
  "id",
  "",
  ": keep-alive",
  "id: turn_1.3\u0000",
  "data: last",
  "",
  "",
];
const FRAMES = [
  { id: "turn_1.1", data: `{"text":"Grüße, 世界 🌍"}` },
  { id: "", data: "first\n\n second: third" },
  { id: "", data: "last" },
];

for (const [name, lineBreak] of [["LF", "\n"], ["CRLF", "\r\n"], ["CR", "\r"]] as const) {
  test(`${name}: a cut at any byte changes nothing`, () => {
    const bytes = encoder.encode(LINES.join(lineBreak));
    assert.deepEqual(parse(bytes), FRAMES);
    for (let at = 0; at <= bytes.length; at++) assert.deepEqual(parse(bytes.subarray(0, at), bytes.subarray(at)), FRAMES, `cut at ${at}`);
    assert.deepEqual(parse(...Array.from(bytes, (byte) => Uint8Array.of(byte))), FRAMES);
  });
}

test("two cuts at any bytes change nothing", () => {
  const bytes = encoder.encode(LINES.slice(0, 6).map((line) => `${line}\r\n`).join(""));
  for (let one = 0; one <= bytes.length; one++) {
    for (let other = one; other <= bytes.length; other++) {
      assert.deepEqual(parse(bytes.subarray(0, one), bytes.subarray(one, other), bytes.subarray(other)), FRAMES.slice(0, 1), `${one}, ${other}`);
    }
  }
});

test("random chunks of random line breaks change nothing", () => {
  // A linear congruential generator, so that a failure repeats.
  let state = 1;
  const random = (below: number) => (state = (state * 1_103_515_245 + 12_345) % 2 ** 31) % below;
  for (let round = 0; round < 300; round++) {
    const bytes = encoder.encode(LINES.map((line) => line + ["\n", "\r\n", "\r\n"][random(3)]).join(""));
    const chunks: Uint8Array[] = [];
    for (let at = 0; at < bytes.length; ) chunks.push(bytes.subarray(at, (at += 1 + random(40))));
    assert.deepEqual(parse(...chunks), FRAMES);
  }
});

test("a frame is returned at its last byte", () => {
  const parser = new SseParser();
  assert.deepEqual(parser.push(encoder.encode("data: a\r\n\r")), [{ id: "", data: "a" }]);
  assert.deepEqual(parser.push(encoder.encode("\ndata: b\n\n")), [{ id: "", data: "b" }]);
});

test("a frame without its end is lost", () => {
  assert.deepEqual(parse("data: a\n\ndata: b\n"), [{ id: "", data: "a" }]);
  assert.deepEqual(parse("data: a"), []);
});

test("the last id stays until the next", () => {
  const ids = parse("id: 1\ndata: a\n\ndata: b\n\nid: 2\n\ndata: c\n\nid: 3\ndata: d\n").map(({ id }) => id);
  assert.deepEqual(ids, ["1", "1", "2"]);
});

test("only the first byte order mark is removed", () => {
  assert.deepEqual(parse("\uFEFFdata: a\n\n\uFEFFdata: b\n\ndata:\uFEFFc\n\n").map(({ data }) => data), ["a", "\uFEFFc"]);
  assert.deepEqual(parse(Uint8Array.of(0xef), Uint8Array.of(0xbb), Uint8Array.of(0xbf), "data: a\n\n").length, 1);
});

test("invalid UTF-8 becomes replacement characters", () => {
  assert.deepEqual(parse("data: a", Uint8Array.of(0xff, 0xe4, 0xb8), "\n\n"), [{ id: "", data: "a\uFFFD\uFFFD" }]);
});

test("chunks may be reused by the caller", () => {
  const parser = new SseParser();
  const chunk = encoder.encode("data: a");
  parser.push(chunk);
  chunk.fill(0);
  assert.deepEqual(parser.push(encoder.encode("\n\n")), [{ id: "", data: "a" }]);
});

test("a frame is limited to 8 MiB", () => {
  const parser = new SseParser();
  const mebibyte = new Uint8Array(1 << 20).fill(97);
  parser.push(encoder.encode("data: "));
  for (let count = 0; count < 7; count++) assert.deepEqual(parser.push(mebibyte), []);
  assert.throws(() => {
    parser.push(mebibyte);
  }, isResponseError);
  const many = new SseParser();
  for (let count = 0; count < 10_000; count++) many.push(encoder.encode(": keep-alive\n\n"));
});

/** The parser is built from the source here, so its errors are of another copy of the package. */
function isResponseError(error: unknown): boolean {
  return error instanceof KartaError && error.name === "KartaResponseError";
}
