import { KartaAbortError, KartaArgumentError, KartaConflictError, KartaConnectionError, KartaResponseError, KartaServerError } from "./shared/errors.js";
import { endedTurn, isTransient } from "./failure.js";
import type { Feed, Http } from "./http.js";
import { isObject, parsedJson } from "./shared/json.js";
import type { RequestOptions } from "./shared/options.js";
import { aborted } from "./shared/retry.js";
import { SseParser, type Frame } from "./sse.js";
import type { TurnEvent, TurnEventData } from "./types.js";

/** The requests of one stream. */
export interface TurnRequests {
  /** Starts the turn, or attaches to it if it was started before. Absent for a stream that only follows. */
  start?: ((onSend: (isSent: boolean) => void) => Promise<Feed>) | undefined;
  /** Replays the events after `after` and follows the turn. */
  follow: (after: string | undefined) => Promise<Feed>;
  /** Ends the session's running turn. */
  cancel: (turnId: string | undefined, options: RequestOptions | undefined) => Promise<unknown>;
}

/** An event as it was received, before its type is known. */
interface Received {
  type: string;
  turn_id: string;
  seq: number;
  data: Record<string, unknown>;
}

/**
 * The events of one turn. Sends nothing until it is iterated or `text` is called.
 *
 * - `for await (const event of stream)` returns one event after another. The last one has the type
 *   `done` or `error`. After a lost connection, the stream resumes after the last event.
 * - `await stream.text()` reads to the end and returns the answer's text, or only the text after the
 *   event `after`.
 * - `await stream.cancel()` ends the turn.
 *
 * A stream that was left with `break` continues after the last event when it is iterated again. After
 * an abort, use `follow`. Leaving or aborting a stream does not end the turn.
 */
export class TurnStream implements AsyncIterable<TurnEvent> {
  readonly #http: Http;
  readonly #requests: TurnRequests;
  readonly #options: RequestOptions;
  #requestId: string | undefined;
  #turnId: string | undefined;
  /** Number of the last event. */
  #seq = 0;
  /** Id from which to resume. */
  #cursor: string | undefined;
  #text = "";
  #end: Extract<TurnEvent, { type: "done" | "error" }> | undefined;
  #isReading = false;
  /** Whether a response has started. */
  #hasOpened = false;
  /** Whether the turn may have started. */
  #mayRun: boolean;
  #isCancelled = false;
  /** Settles when the request that starts the turn is answered or has failed. */
  #starting: Promise<void> | undefined;

  /** @throws {KartaArgumentError} if `after` is not the id of an event. */
  constructor(http: Http, requests: TurnRequests, options: RequestOptions, after?: string) {
    this.#http = http;
    this.#requests = requests;
    this.#options = options;
    this.#mayRun = requests.start === undefined;
    if (after === undefined) return;
    const [, turnId, seq] = (typeof after === "string" && /^([\w-]+)\.(\d+)$/.exec(after)) || [];
    if (turnId === undefined) throw new KartaArgumentError("after", "must be the id of an event: turn_….3");
    [this.#cursor, this.#turnId, this.#seq] = [after, turnId, Number(seq)];
  }

  /** Id of the turn; absent before the first event. */
  get turnId(): string | undefined {
    return this.#turnId;
  }

  /** Id of the last event, for `follow`; absent before the first event. */
  get lastEventId(): string | undefined {
    return this.#turnId === undefined ? undefined : `${this.#turnId}.${this.#seq}`;
  }

  /**
   * @throws {KartaArgumentError} if the stream is being read already; the errors of `send` if the
   * turn does not start; {KartaConnectionError} if the stream cannot be resumed;
   * {KartaConflictError} `no_turn_in_progress` if the server no longer has the turn's events;
   * {KartaAbortError}.
   */
  async *[Symbol.asyncIterator](): AsyncGenerator<TurnEvent, void, undefined> {
    if (this.#isReading) throw new KartaArgumentError("stream", "is already being read: leave the first loop before reading again");
    this.#isReading = true;
    let failures = 0;
    try {
      while (this.#end === undefined) {
        try {
          for await (const event of this.#events(await this.#open())) {
            failures = 0;
            yield event;
          }
        } catch (error) {
          const limit = this.#hasOpened ? this.#http.maxReconnects : this.#http.maxRetries(this.#options);
          if (failures >= limit || !this.#isRepeatable(error)) throw error;
          await this.#http.backOff(failures, error, this.#options.signal);
          failures += 1;
        }
      }
    } finally {
      this.#isReading = false;
    }
  }

  /**
   * Reads to the end and returns the text of all `text` events. After the end, returns it at once.
   *
   * @throws the error that `send` would have thrown if the turn ends with an `error` event; the
   * errors of iteration.
   */
  async text(): Promise<string> {
    for await (const _ of this);
    const end = this.#end;
    if (end?.type === "error") throw this.#http.turnFailure(end.data, this.#requestId);
    return this.#text;
  }

  /**
   * Ends this turn, also after reading was aborted. The stream then ends with the error
   * `turn_cancelled`. Before the first event the turn's id is unknown, so this ends the turn that
   * runs in the session. Waits while the turn is starting. A stream that has not started its turn
   * never starts it. Does nothing if the turn has ended.
   *
   * @throws the errors of `KartaSessions.cancel`, except `no_turn_in_progress`.
   */
  async cancel(options?: RequestOptions): Promise<void> {
    this.#isCancelled = true;
    await this.#starting;
    if (this.#end !== undefined || !this.#mayRun) return;
    try {
      await this.#requests.cancel(this.#turnId, options);
    } catch (error) {
      // The turn has ended.
      if (!isNoTurn(error)) throw error;
    }
  }

  async #open(): Promise<Feed> {
    this.#throwIfAborted();
    if (this.#requests.start === undefined || this.#cursor !== undefined) return this.#request(() => this.#requests.follow(this.#cursor));
    // A repeat would run a cancelled turn again.
    if (this.#isCancelled) throw new KartaAbortError("the turn was cancelled before its first event");
    const started = this.#request(this.#requests.start);
    this.#starting = started.then(
      () => {},
      () => {},
    );
    return started;
  }

  async #request(open: (onSend: (isSent: boolean) => void) => Promise<Feed>): Promise<Feed> {
    let isSent = false;
    try {
      const feed = await open((sent) => (isSent = sent));
      this.#hasOpened = true;
      this.#mayRun = true;
      this.#requestId = feed.requestId;
      return feed;
    } catch (error) {
      // The server may have received the request.
      const isUnknown = error instanceof KartaConnectionError || error instanceof KartaAbortError || error instanceof KartaServerError;
      if (isSent && isUnknown && !endedTurn(error)) this.#mayRun = true;
      if (this.#cursor === undefined || !isNoTurn(error)) throw error;
      const { status, body, requestId } = error;
      const message = `${status}: no events follow ${this.#cursor}: the turn ended or its events expired. Read its messages()`;
      throw new KartaConflictError(message, { status, body, requestId, cause: error });
    }
  }

  #throwIfAborted(): void {
    const { signal } = this.#options;
    if (signal?.aborted) throw aborted(signal);
  }

  async *#events(feed: Feed): AsyncGenerator<TurnEvent, void, undefined> {
    const parser = new SseParser();
    for await (const chunk of feed.chunks) {
      for (const frame of parser.push(chunk)) {
        this.#throwIfAborted();
        const event = this.#accept(frame);
        if (event === undefined) continue;
        yield event;
        if (this.#end !== undefined) return;
      }
    }
    throw new KartaConnectionError(`the stream of ${this.#http.baseUrl} ended before the turn did`);
  }

  /** Records an event. Returns `undefined` for one that was received before or has an unknown type. */
  #accept({ id, data: text }: Frame): TurnEvent | undefined {
    const event = received(text, this.#requestId);
    const { type, turn_id, seq } = event;
    const isEnd = type === "done" || type === "error";
    if (this.#turnId !== undefined && turn_id !== this.#turnId) {
      throw new KartaResponseError(`the stream has an event of turn ${turn_id} within turn ${this.#turnId}`, { requestId: this.#requestId });
    }
    // The end of an interrupted turn may have the number of an event that was not stored.
    if (seq <= this.#seq && !isEnd) return undefined;
    if (seq > this.#seq + 1 && type !== "error") {
      throw new KartaConnectionError(`the stream lacks the events between ${this.#seq} and ${seq} of turn ${turn_id}`, { requestId: this.#requestId });
    }
    this.#turnId = turn_id;
    this.#seq = Math.max(this.#seq, seq);
    const own = `${turn_id}.${seq}`;
    this.#cursor = id === "" ? own : id;
    if (!Object.hasOwn(IS_VALID, type)) return undefined;
    const complete = { ...event, id: own } as unknown as TurnEvent;
    if (complete.type === "text") this.#text += complete.data.part.text;
    if (complete.type === "done" || complete.type === "error") this.#end = complete;
    return complete;
  }

  /** Returns whether the stream may continue after `error`. */
  #isRepeatable(error: unknown): boolean {
    // A follower changes nothing, so every server error is worth another attempt.
    return isTransient(error) || (this.#hasOpened && this.#cursor !== undefined && error instanceof KartaServerError);
  }
}

/** Checks of each known type's `data`. Events of other types are skipped: more may be added. */
const IS_VALID: Readonly<Record<keyof TurnEventData, (data: Record<string, unknown>) => boolean>> = {
  text: hasPart,
  reasoning: hasPart,
  done: ({ message_id }) => typeof message_id === "string",
  error: ({ code, message }) => typeof code === "string" && typeof message === "string",
};

function hasPart({ part }: Record<string, unknown>): boolean {
  return isObject(part) && typeof part.text === "string";
}

/** Returns the envelope of an event. Throws KartaResponseError for anything else. */
function received(text: string, requestId: string | undefined): Received {
  const event = parsedJson(text);
  if (isObject(event)) {
    const { type, turn_id, seq, data } = event;
    if (typeof type === "string" && typeof turn_id === "string" && Number.isSafeInteger(seq) && isObject(data)) {
      if (!Object.hasOwn(IS_VALID, type) || IS_VALID[type as keyof TurnEventData](data)) return event as unknown as Received;
    }
  }
  throw new KartaResponseError(
    "the stream has an invalid event: expected type, turn_id, seq, and the data of this type",
    { requestId },
  );
}

function isNoTurn(error: unknown): error is KartaConflictError {
  return error instanceof KartaConflictError && error.code === "no_turn_in_progress";
}
