import { KartaSessions, type KartaSessionsOptions } from "@karta/sessions";

export { failure, json } from "./shared/calls.js";

export const API_KEY = "kt_live_0123456789abcdefghijABCDEFGHIJ01";
export const TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJzY29wZSI6InNlc3Npb24ifQ.c2lnbmF0dXJl";
export const SESSION = `sess_${"0a".repeat(16)}`;
export const TURN = `turn_${"1b".repeat(16)}`;
export const BASE_URL = "https://karta.test";

/** A request that a scripted server received. */
export interface Sent {
  method: string;
  url: string;
  path: string;
  headers: Headers;
  body: unknown;
  init: RequestInit;
}

export type Scripted = Response | Error | ((sent: Sent) => Response | Promise<Response>);

/**
 * Returns a client whose requests get the responses of `script` in order; the last response
 * repeats. Waits are recorded and skipped.
 */
export function scripted(script: Scripted[], options: Partial<KartaSessionsOptions> = {}) {
  const sent: Sent[] = [];
  const waits: number[] = [];
  const send = async (url: string | URL | Request, init: RequestInit = {}): Promise<Response> => {
    const body = init.body === undefined ? undefined : (JSON.parse(String(init.body)) as unknown);
    const { pathname, search } = new URL(String(url));
    const request = { method: String(init.method), url: String(url), path: pathname + search, headers: new Headers(init.headers), body, init };
    sent.push(request);
    const next = script[Math.min(sent.length, script.length) - 1];
    if (next instanceof Error) throw next;
    if (next === undefined) throw new Error("the script is empty");
    return next instanceof Response ? next.clone() : next(request);
  };
  const sessions = new KartaSessions({
    ...("sessionToken" in options ? {} : { apiKey: API_KEY }),
    baseUrl: BASE_URL,
    fetch: send,
    random: () => 0.5,
    sleep: async (ms: number) => void waits.push(ms),
    ...options,
  } as KartaSessionsOptions);
  return { sessions, sent, waits };
}

/** How a scripted stream ends: regularly, with a broken connection, or never. */
export type Ending = "end" | "break" | "hang";

/** Returns a script item: a response that streams `chunks`, each in one read. */
export function streamed(chunks: readonly (string | Uint8Array)[], ending: Ending = "end"): () => Response {
  return () => {
    const left = chunks.map((chunk) => (typeof chunk === "string" ? new TextEncoder().encode(chunk) : chunk)).filter(({ length }) => length > 0);
    const pull = (controller: ReadableStreamDefaultController<Uint8Array>): void | Promise<void> => {
      const next = left.shift();
      if (next !== undefined) controller.enqueue(next);
      else if (ending === "end") controller.close();
      else if (ending === "break") controller.error(new TypeError("terminated"));
      else return new Promise(() => {});
    };
    // Nothing is queued: a broken stream would drop it.
    const body = new ReadableStream<Uint8Array>({ pull }, { highWaterMark: 0 });
    return new Response(body, { headers: { "content-type": "text/event-stream; charset=utf-8", "x-request-id": "req_stream" } });
  };
}

/** Returns the frame of an event, as the server writes it. */
export function frame(seq: number, type: string, data: unknown, turn = TURN): string {
  const envelope = { type, session_id: SESSION, turn_id: turn, seq, timestamp: "2026-12-01T00:00:00.000Z", data };
  return `id: ${turn}.${seq}\nevent: ${type}\ndata: ${JSON.stringify(envelope)}\n\n`;
}

export const text = (seq: number, words: string, turn?: string) => frame(seq, "text", { part: { id: "part_1", type: "text", text: words } }, turn);
export const reasoning = (seq: number, words: string) => frame(seq, "reasoning", { part: { id: "part_0", type: "reasoning", text: words } });
export const USAGE = { input_tokens: 12, output_tokens: 5, cache_read_tokens: 0, cache_write_tokens: 0, cost_cents: 1 };
export const done = (seq: number) => frame(seq, "done", { message_id: "msg_1", usage: USAGE, stop_reason: "end_turn" });
export const failed = (seq: number, code: string, message = `The turn ended: ${code}`) => frame(seq, "error", { code, message });

/** A whole turn, with reasoning, text that is not ASCII, and its end. */
export const FRAMES = [reasoning(1, "hm, "), text(2, "Grüße"), text(3, ", 世"), text(4, "界 🌍\n\n"), text(5, ""), text(6, "!"), done(7)];
export const TEXT = "Grüße, 世界 🌍\n\n!";

/** Returns the items of an iterable. */
export async function collect<T>(items: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const item of items) all.push(item);
  return all;
}
