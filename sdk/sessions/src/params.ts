// Validates the parameters of calls and turns them into the API's fields. JSON would drop or change
// values of other types, and the server would do something else than the caller meant.
import { KartaArgumentError } from "./shared/errors.js";
import { isObject } from "./shared/json.js";
import type { ListParams } from "./shared/list.js";
import { knownOnly, rejectUndefined, wellFormed } from "./shared/arguments.js";

/** Fields of a new session. */
export interface CreateParams {
  /** Up to 50 pairs. `user_id` makes the session one user's. `undefined` is rejected. */
  metadata?: Readonly<Record<string, string>> | null;
}

/** Filters of a list of sessions. */
export interface SessionListParams extends ListParams {
  /** Sessions of this user. `userId` is an alias. */
  user_id?: string;
  userId?: string;
}

/** A message and the settings of its turn. */
export interface TurnParams {
  text: string;
  /** Default: the model of the release, the project or the organization. */
  model?: string | null | undefined;
  /** Default: 4,096. `undefined` is rejected. `maxTokens` is an alias. */
  max_tokens?: number | null;
  maxTokens?: number | null;
  /** Asks for reasoning, which arrives as `reasoning` events and parts. */
  thinking?: boolean | null | undefined;
}

/** The turn to cancel. */
export interface CancelParams {
  /** Default: the turn that runs, also for `null`; `undefined` is rejected. */
  turn_id?: string | null;
}

/** Returns the body that cancels a turn. */
export function cancelBody(params: CancelParams): { turn_id?: string } {
  const fields = knownOnly<CancelParams>(params, "params", ["turn_id"]);
  // An empty variable must not end another turn.
  return "turn_id" in fields && fields.turn_id !== null ? { turn_id: text(fields.turn_id, "turn_id") } : {};
}

/** Returns the body that creates a session. */
export function createBody(params: CreateParams): { metadata?: Readonly<Record<string, string>> } {
  const fields = knownOnly<CreateParams>(params, "params", ["metadata"]);
  const { metadata } = fields;
  // An empty variable must not create a session without a user.
  rejectUndefined(fields, "metadata");
  if (metadata === undefined || metadata === null) return {};
  // JSON would drop the entries of a Map or of an object of a class.
  const prototype: unknown = isObject(metadata) ? Object.getPrototypeOf(metadata) : undefined;
  const isPlain = prototype === null || (isObject(prototype) && Object.getPrototypeOf(prototype) === null && !("toJSON" in prototype));
  if (!isPlain) throw new KartaArgumentError("metadata", "must be a plain object");
  // A `user_id` that is undefined would create a session without a user.
  for (const [name, value] of Object.entries(metadata)) text(value, `metadata.${name}`);
  // The caller may change its object for the next call before this one is sent.
  return { metadata: { ...metadata } };
}

/** Returns the filters of a list of sessions. */
export function listQuery(params: SessionListParams): { user_id: string | undefined } {
  const fields = knownOnly<SessionListParams>(params, "params", ["user_id", "userId", "limit", "cursor"]);
  // An empty variable must not list the sessions of all users.
  for (const name of ["user_id", "userId"] as const) if (name in fields) wellFormed(text(fields[name], name), name);
  return { user_id: single(fields.user_id, fields.userId, "userId") };
}

/** Returns the body that starts a turn. */
export function turnBody(params: TurnParams): Record<string, string | number | boolean> {
  const fields = knownOnly<TurnParams>(params, "params", ["text", "model", "max_tokens", "maxTokens", "thinking"]);
  // A failed calculation must not raise the limit to the default.
  rejectUndefined(fields, "max_tokens", "maxTokens");
  const model = fields.model ?? undefined;
  const maxTokens = single(fields.max_tokens ?? undefined, fields.maxTokens ?? undefined, "maxTokens");
  const thinking = fields.thinking ?? undefined;
  if (maxTokens !== undefined && !(Number.isSafeInteger(maxTokens) && maxTokens > 0)) {
    throw new KartaArgumentError("max_tokens", "must be a positive integer");
  }
  if (thinking !== undefined && typeof thinking !== "boolean") throw new KartaArgumentError("thinking", "must be true or false");
  return {
    text: text(fields.text, "text"),
    ...(model === undefined ? {} : { model: text(model, "model") }),
    ...(maxTokens === undefined ? {} : { max_tokens: maxTokens }),
    ...(thinking === undefined ? {} : { thinking }),
  };
}

function text(value: unknown, field: string): string {
  if (typeof value === "string") return value;
  throw new KartaArgumentError(field, `must be a string, not ${value === null ? "null" : typeof value}`);
}

/** Returns the value of a field that may have two names. */
function single<T>(value: T | undefined, alias: T | undefined, name: string): T | undefined {
  if (value === undefined || alias === undefined || value === alias) return value ?? alias;
  throw new KartaArgumentError(name, "must have one value: its alias has a different one");
}
