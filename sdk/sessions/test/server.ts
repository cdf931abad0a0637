// A fake data plane over HTTP, as small as the contract allows.
import { randomBytes } from "node:crypto";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import type { Message, Session } from "@karta/sessions";
import { FRAMES, TEXT, TURN, USAGE, failed } from "./support.js";

interface Turn {
  id: string;
  events: string[];
  status: string;
  /** Whether the last event is in `events`. */
  isComplete: boolean;
  changed: Set<() => void>;
  key: string | undefined;
  text: string;
}

interface Stored {
  session: Session;
  turns: Turn[];
}

/** A request that the server received. */
export interface Seen {
  method: string;
  path: string;
  body: Record<string, unknown>;
  headers: IncomingMessage["headers"];
}

const NOW = "2026-12-01T00:00:00.000Z";
const id = (kind: string) => `${kind}_${randomBytes(16).toString("hex")}`;

export class FakeServer {
  readonly seen: Seen[] = [];
  /** Credentials that are accepted. */
  readonly credentials = new Set<string>();
  /**
   * For each stream, the number of events after which its connection is broken, within the next
   * event. A stream without an entry is complete.
   */
  readonly cuts: number[] = [];
  /** Number of events after which a turn waits to be cancelled. */
  pauseAfter = Infinity;
  /** Whether finished turns have no events any more. */
  eventsAreGone = false;
  /** Milliseconds before the head of a stream. */
  headDelay = 0;
  readonly #sessions = new Map<string, Stored>();
  readonly #server: Server;

  private constructor() {
    this.#server = createServer((request, response) => {
      void this.#answer(request, response).catch((error: unknown) => {
        console.error(error);
        response.destroy();
      });
    });
  }

  static async start(): Promise<FakeServer> {
    const server = new FakeServer();
    await new Promise<void>((resolve) => server.#server.listen(0, "127.0.0.1", resolve));
    // Node.js 18.17 runs the hooks after the tests only when nothing else is left to do.
    server.#server.unref();
    server.#server.keepAliveTimeout = 500;
    return server;
  }

  get url(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  /** Number of turns that were run. */
  get turns(): number {
    return [...this.#sessions.values()].reduce((count, { turns }) => count + turns.length, 0);
  }

  /** Status of a session's latest turn. */
  turnStatus(sessionId: string): string | undefined {
    return this.#sessions.get(sessionId)?.turns.at(-1)?.status;
  }

  async stop(): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const chunks: Buffer[] = [];
    for await (const chunk of request) chunks.push(chunk as Buffer);
    const raw = Buffer.concat(chunks).toString();
    const url = new URL(String(request.url), "http://karta.test");
    const method = String(request.method);
    const body = raw === "" ? {} : (JSON.parse(raw) as Record<string, unknown>);
    this.seen.push({ method, path: url.pathname + url.search, body, headers: request.headers });
    const send = (status: number, answer?: unknown) => {
      response.writeHead(status, { "content-type": "application/json", "x-request-id": "req_fake" });
      response.end(answer === undefined ? undefined : JSON.stringify(answer));
    };
    const credential = /^Bearer (.+)$/.exec(request.headers.authorization ?? "")?.[1] ?? "";
    if (!this.credentials.has(credential)) return send(401, { detail: "Unauthorized", message: "Send Authorization: Bearer <key>." });
    const [, project, sessionId, route] = /^\/v1(?:\/projects\/([^/]+))?\/sessions(?:\/([^/]+)(?:\/(\w+))?)?$/.exec(url.pathname) ?? [];
    const stored = this.#sessions.get(String(body.session_id ?? sessionId));
    if (sessionId === undefined && method === "GET") return send(200, this.#list(url.searchParams));
    if (sessionId === undefined && body.session_id === undefined) return send(201, this.#create(project, body));
    if (stored === undefined) return send(404, { detail: "Not found" });
    const { session, turns } = stored;
    const latest = turns.at(-1);
    switch (`${method} ${route ?? ""}`) {
      case "POST ":
      case "GET ":
        return send(200, session);
      case "DELETE ":
        this.#sessions.delete(session.id);
        return send(204);
      case "GET messages":
        return send(200, { messages: turns.flatMap((turn) => messagesOf(turn)), next_cursor: null });
      case "POST messages": {
        const key = request.headers["idempotency-key"];
        const known = turns.find((turn) => turn.key === key && (turn.status === "running" || turn.status === "completed"));
        if (known === undefined && latest?.status === "running") return send(409, { error: "turn_in_progress", message: "A turn is running" });
        const turn = known ?? this.#run(stored, String(body.text), String(key));
        if (body.stream === true) return this.#stream(turn, 0, response);
        while (!turn.isComplete) await change(turn);
        const [, answer] = messagesOf(turn);
        return send(200, { text: answer?.text, session_id: session.id, turn_id: turn.id, agent: "default", messages: messagesOf(turn), usage: USAGE, stop_reason: "end_turn" });
      }
      case "GET stream": {
        const after = url.searchParams.get("after");
        const turn = after === null ? latest : turns.find((each) => after.startsWith(`${each.id}.`));
        const seq = Number(after?.split(".")[1] ?? 0);
        const hasEvents = turn !== undefined && !this.eventsAreGone && (!turn.isComplete || seq < turn.events.length);
        if (!hasEvents) return send(409, { error: "no_turn_in_progress", message: "No turn is running" });
        return this.#stream(turn, seq, response);
      }
      case "POST cancel":
        if (latest?.status !== "running" || ![undefined, latest.id].includes((body as { turn_id?: string }).turn_id)) return send(409, { error: "no_turn_in_progress", message: "No turn is running" });
        latest.status = "cancelled";
        notify(latest);
        return send(202, session);
      default:
        return send(404, { detail: "Not found", error: "unknown_route" });
    }
  }

  #create(project: string | undefined, { metadata = {} }: Record<string, unknown>): Session {
    const session: Session = {
      id: id("sess"),
      metadata: metadata as Record<string, string>,
      user_id: (metadata as Record<string, string>).user_id ?? null,
      status: "active",
      current_agent: "default",
      project: project === undefined ? null : { ref: project, project_id: 1, version: 1 },
      turn: null,
      usage: { input_tokens: 0, output_tokens: 0, cost_cents: 0 },
      created_at: NOW,
      updated_at: NOW,
      expires_at: NOW,
    };
    this.#sessions.set(session.id, { session, turns: [] });
    return session;
  }

  #list(query: URLSearchParams): object {
    const all = [...this.#sessions.values()].map(({ session }) => session).reverse();
    const found = all.filter(({ user_id }) => !query.has("user_id") || user_id === query.get("user_id"));
    const start = Number(query.get("cursor") ?? 0);
    const end = start + Number(query.get("limit"));
    return { sessions: found.slice(start, end), next_cursor: end < found.length ? String(end) : null };
  }

  /** Runs a turn to its end, whether or not a client listens. */
  #run(stored: Stored, text: string, key: string): Turn {
    const turn: Turn = { id: id("turn"), events: [], status: "running", isComplete: false, changed: new Set(), key, text };
    stored.turns.push(turn);
    stored.session.turn = { id: turn.id, status: "running", started_at: NOW };
    void (async () => {
      for (const event of FRAMES) {
        await new Promise((resolve) => setImmediate(resolve));
        while (turn.status === "running" && turn.events.length >= this.pauseAfter) await change(turn);
        if (turn.status === "cancelled") {
          turn.events.push(ofTurn(failed(turn.events.length + 1, "turn_cancelled"), turn.id));
          turn.isComplete = true;
          return notify(turn);
        }
        turn.events.push(ofTurn(event, turn.id));
        if (event === FRAMES.at(-1)) [turn.status, turn.isComplete] = ["completed", true];
        notify(turn);
      }
    })();
    return turn;
  }

  async #stream(turn: Turn, after: number, response: ServerResponse): Promise<void> {
    const cut = this.cuts.shift() ?? Infinity;
    await new Promise((resolve) => setTimeout(resolve, this.headDelay));
    response.writeHead(200, { "content-type": "text/event-stream; charset=utf-8", "x-request-id": "req_fake" });
    response.flushHeaders();
    for (let at = after, sent = 0; !response.destroyed; at++, sent++) {
      while (turn.events[at] === undefined && !turn.isComplete) await change(turn);
      const event = turn.events[at] ?? (sent === 0 ? turn.events.at(-1) : undefined);
      if (event === undefined) break;
      if (sent === cut) {
        await new Promise((resolve) => response.write(event.slice(0, event.length >> 1), resolve));
        response.destroy();
        return;
      }
      response.write(": keep-alive\n\n");
      response.write(event);
    }
    response.end();
  }
}

function ofTurn(event: string, turn: string): string {
  return event.replaceAll(TURN, turn);
}

function notify(turn: Turn): void {
  const waiting = [...turn.changed];
  turn.changed.clear();
  for (const wake of waiting) wake();
}

function change(turn: Turn): Promise<void> {
  return new Promise((resolve) => void turn.changed.add(resolve));
}

function messagesOf(turn: Turn): Message[] {
  const message = (role: Message["role"], text: string): Message => ({
    id: id("msg"),
    turn_id: turn.id,
    role,
    text,
    parts: [{ id: "part_1", type: "text", text }],
    created_at: NOW,
  });
  return [message("user", turn.text), ...(turn.status === "completed" ? [message("assistant", TEXT)] : [])];
}
