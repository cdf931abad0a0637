import { Http, type Call } from "./http.js";
import { settingsOf, type KartaSessionsOptions } from "./options.js";
import { cancelBody, createBody, listQuery, turnBody, type CancelParams, type CreateParams, type SessionListParams, type TurnParams } from "./params.js";
import { knownOnly, wellFormed } from "./shared/arguments.js";
import { KartaArgumentError } from "./shared/errors.js";
import { List, limitOf, type ListParams } from "./shared/list.js";
import { CREATE_OPTIONS, REQUEST_OPTIONS, callOptions, type CreateOptions, type RequestOptions } from "./shared/options.js";
import { randomHex } from "./shared/platform.js";
import { TurnStream, type TurnRequests } from "./turn-stream.js";
import type { Message, Session, TurnAnswer } from "./types.js";

/**
 * A client of the data plane: sessions, messages and turns. With an API key it reaches the sessions
 * of the organization, or of `project`. With a session token it reaches the sessions of the token's
 * user.
 */
export class KartaSessions {
  readonly #http: Http;

  /**
   * Creates a client. Sends nothing.
   *
   * @throws {KartaArgumentError} for an invalid or unknown option.
   */
  constructor(options: KartaSessionsOptions) {
    this.#http = new Http(settingsOf(options));
  }

  /** Base URL of Karta, without `/v1`. */
  get baseUrl(): string {
    return this.#http.baseUrl;
  }

  /**
   * Creates a session. Never retried, because a retry may create a second one. Scope `write`.
   *
   * @throws {KartaBudgetError} if the budget is exhausted; {KartaConflictError} `no_active_release`;
   * {KartaForbiddenError} without the scope, or for another user than the token's;
   * {KartaValidationError}.
   */
  async create(params: CreateParams = {}, options?: RequestOptions): Promise<Session> {
    return this.#post("", createBody(params), options);
  }

  /**
   * Returns an existing session to continue it. `metadata` may have `user_id` only, which must be
   * the session's user. Never retried. Scope `write`.
   *
   * @throws {KartaNotFoundError} if the credential reaches no such session, or if it has another
   * user; {KartaBudgetError}; {KartaForbiddenError} without the scope.
   */
  async resume(sessionId: string, params: CreateParams = {}, options?: RequestOptions): Promise<Session> {
    pathOf(sessionId);
    return this.#post("", { ...createBody(params), session_id: sessionId }, options);
  }

  /**
   * Returns a session. Scope `read`.
   *
   * @throws {KartaNotFoundError} if the credential reaches no such session; {KartaForbiddenError}
   * without the scope.
   */
  async get(sessionId: string, options?: RequestOptions): Promise<Session> {
    return this.#http.json({ method: "GET", path: pathOf(sessionId) }, known(options));
  }

  /**
   * Lists sessions, newest first. Scope `read`.
   *
   * @throws {KartaArgumentError} for a user that is `undefined` or `null`; {KartaForbiddenError}
   * without the scope, or for a token without a user.
   */
  list(params: SessionListParams = {}, options?: RequestOptions): List<Session> {
    return this.#list("sessions", "", listQuery(params), params, known(options));
  }

  /**
   * Deletes a session. Scope `write`. After a lost response, a retry may throw KartaNotFoundError.
   *
   * @throws {KartaConflictError} `turn_in_progress` while a turn runs; {KartaNotFoundError};
   * {KartaForbiddenError} without the scope.
   */
  async delete(sessionId: string, options?: RequestOptions): Promise<void> {
    return this.#http.json({ method: "DELETE", path: pathOf(sessionId) }, known(options));
  }

  /**
   * Lists a session's messages, oldest first. Scope `read`.
   *
   * @throws {KartaNotFoundError}; {KartaForbiddenError} without the scope, or for an API key if
   * `transcript_access` is off.
   */
  messages(sessionId: string, params: ListParams = {}, options?: RequestOptions): List<Message> {
    knownOnly<ListParams>(params, "params", ["limit", "cursor"]);
    return this.#list("messages", `${pathOf(sessionId)}/messages`, {}, params, known(options));
  }

  /**
   * Sends a message and waits for the whole answer. A retry attaches to the same turn, or starts
   * another one if that turn has failed or was interrupted. Scope `write`.
   *
   * @throws {KartaConflictError} `turn_in_progress`, `turn_cancelled`; {KartaValidationError} for
   * invalid input, a model that cannot be used, or a request that the provider rejected;
   * {KartaBudgetError}; {KartaRateLimitError}; {KartaServerError} if the provider or the turn
   * failed; {KartaNotFoundError}; {KartaForbiddenError} without the scope.
   */
  async send(sessionId: string, params: TurnParams, options?: CreateOptions): Promise<TurnAnswer> {
    const call = turnCall(sessionId, turnBody(params));
    const given = knownCreate(options);
    return this.#http.json({ ...call, idempotencyKey: await keyOf(given) }, given, this.#http.turnTimeout);
  }

  /**
   * Sends a message and returns its turn as a stream of events. Nothing is sent until the stream is
   * read. Scope `write`, and `read` to resume after a lost connection.
   *
   * @throws {KartaArgumentError} for an invalid argument. Reading throws the other errors.
   */
  stream(sessionId: string, params: TurnParams, options?: CreateOptions): TurnStream {
    const call = turnCall(sessionId, { ...turnBody(params), stream: true });
    const given = knownCreate(options);
    let key: Promise<string> | undefined;
    const start = async (onSend: (isSent: boolean) => void) => this.#http.open({ ...call, idempotencyKey: await (key ??= keyOf(given)), onSend }, given);
    return this.#stream(sessionId, start, given);
  }

  /**
   * Follows a turn that was started elsewhere: the turn of the event `after`, or the running turn,
   * or the latest. Replays its events after `after`, or all. Scope `read`.
   *
   * @throws {KartaArgumentError} for an invalid argument. Reading throws KartaConflictError
   * `no_turn_in_progress` if there is no turn yet or its events are gone, and the other errors.
   */
  follow(sessionId: string, params: { after?: string | undefined } = {}, options?: RequestOptions): TurnStream {
    const { after } = knownOnly<{ after?: string | undefined }>(params, "params", ["after"]);
    return this.#stream(sessionId, undefined, known(options), after);
  }

  /**
   * Ends the session's running turn. Never retried. Scope `write`.
   *
   * @throws {KartaArgumentError} for a `turn_id` that is `undefined`; {KartaConflictError}
   * `no_turn_in_progress`; {KartaNotFoundError};
   * {KartaForbiddenError} without the scope.
   */
  async cancel(sessionId: string, params: CancelParams = {}, options?: RequestOptions): Promise<Session> {
    return this.#post(`${pathOf(sessionId)}/cancel`, cancelBody(params), options);
  }

  toString(): string {
    return `KartaSessions(${this.baseUrl})`;
  }

  toJSON(): { baseUrl: string } {
    return { baseUrl: this.baseUrl };
  }

  /** The text that `console.log` prints in Node.js. */
  [Symbol.for("nodejs.util.inspect.custom")](): string {
    return this.toString();
  }

  #post(path: string, body: object, options: RequestOptions | undefined): Promise<Session> {
    return this.#http.json({ method: "POST", path, body }, known(options));
  }

  #list<T>(plural: string, path: string, query: Call["query"], params: ListParams, options: RequestOptions): List<T> {
    const given = params ?? {};
    limitOf(given);
    wellFormed(String(given.cursor), "cursor");
    return new List<T>(given, (page) => this.#http.page({ method: "GET", path, query: { ...query, ...page } }, plural, options));
  }

  #stream(sessionId: string, start: TurnRequests["start"], options: RequestOptions, after?: string): TurnStream {
    const path = `${pathOf(sessionId)}/stream`;
    const follow = (id: string | undefined) => this.#http.open({ method: "GET", path, query: { after: id } }, options);
    return new TurnStream(this.#http, { start, follow, cancel: (turnId, given) => this.cancel(sessionId, turnId === undefined ? {} : { turn_id: turnId }, given) }, options, after);
  }
}

/** Returns a session's path. Throws KartaArgumentError for an id that would lead to another path. */
function pathOf(sessionId: string): string {
  if (typeof sessionId === "string" && /^[\w-]{1,128}$/.test(sessionId)) return `/${sessionId}`;
  throw new KartaArgumentError("sessionId", "must be the id of a session: sess_…");
}

function turnCall(sessionId: string, body: object): Call {
  return { method: "POST", path: `${pathOf(sessionId)}/messages`, body };
}

function known(options: RequestOptions | null | undefined): RequestOptions {
  return callOptions(options, REQUEST_OPTIONS);
}

function knownCreate(options: CreateOptions | null | undefined): CreateOptions {
  return callOptions(options, CREATE_OPTIONS);
}

/** Returns the caller's idempotency key, or a new one. */
async function keyOf({ idempotencyKey }: CreateOptions): Promise<string> {
  return idempotencyKey ?? randomHex();
}
