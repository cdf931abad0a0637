import { KartaArgumentError } from "../errors.js";
import { fieldsOf, plain } from "../json.js";
import type { RequestOptions } from "../shared/options.js";
import { slug } from "../path.js";
import { Resource } from "./resource.js";

/** User and lifetime of a token. `userId` and `ttlSeconds` are aliases of the API's names. */
export interface SessionTokenParams {
  /**
   * The end user, 1 to 255 bytes that are not all blank. The token is then valid only for this
   * user's sessions. Omit it for a token without a user.
   */
  user_id?: string;
  userId?: string;
  /** 60 to 3600. Default: 900. `undefined` is rejected. */
  ttl_seconds?: number | null;
  ttlSeconds?: number | null;
}

/** A token that is safe to use in one end user's browser. */
export interface SessionToken {
  token: string;
  expires_at: string;
  /** Seconds. */
  expires_in: number;
  project: { id: number; slug: string };
  /** The token's user; `null` for a token without a user. */
  sub: string | null;
}

type Name = keyof SessionTokenParams;
const USER_NAMES = ["user_id", "userId"] as const satisfies readonly Name[];
const TTL_NAMES = ["ttl_seconds", "ttlSeconds"] as const satisfies readonly Name[];

/**
 * Returns the values that `params` and its JSON form `fields` have under any of `names`. Only
 * `params` has inherited fields, and a `toJSON` method may add or drop fields.
 */
function given(params: SessionTokenParams, fields: SessionTokenParams, names: readonly Name[]): [Name, unknown][] {
  return names.flatMap((name) => [params, fields].filter((source) => name in source).map((source): [Name, unknown] => [name, source[name]]));
}

/**
 * Throws KartaArgumentError for a user that is `undefined` or `null`: an empty variable must not
 * create a token without a user.
 */
function rejectMissingUser(users: [Name, unknown][]): void {
  for (const [name, user] of users) {
    if (user !== undefined && user !== null) continue;
    throw new KartaArgumentError(name, `is ${user}: pass a user, or omit the field for a token without a user`);
  }
}

/**
 * Throws KartaArgumentError for a lifetime that is `undefined`: a failed calculation must not
 * lengthen it to the default.
 */
function rejectMissingLifetime(lifetimes: [Name, unknown][]): void {
  const [first] = lifetimes;
  if (first === undefined || lifetimes.some(([, lifetime]) => lifetime !== undefined)) return;
  throw new KartaArgumentError(first[0], "must not be undefined: pass a value or omit the field");
}

/**
 * Returns the value of a field; `undefined` if it is absent. Throws KartaArgumentError for two
 * different values.
 */
function singleValue(values: [Name, unknown][]): unknown {
  const present = values.filter(([, value]) => value !== undefined).map(([name, value]) => [name, plain(value, name)] as const);
  const [first, ...others] = present;
  for (const [name, value] of others) {
    if (JSON.stringify(value) === JSON.stringify(first?.[1])) continue;
    throw new KartaArgumentError(name, `must have one value: ${first?.[0] === name ? "its JSON form" : first?.[0]} has a different one`);
  }
  return first?.[1];
}

/** Tokens for end users' browsers. */
export class SessionTokens extends Resource {
  /**
   * Mints a token for a project, and for one user if `user_id` is given. Never retried. Scope
   * `write`.
   *
   * @throws {KartaBudgetError} if the budget is exhausted; {KartaNotFoundError} if the organization
   * has no such project; {KartaValidationError}; {KartaArgumentError} for a user that is
   * `undefined` or `null`, a lifetime that is `undefined`, or two different users or lifetimes;
   * {KartaForbiddenError} without the scope.
   */
  async mint(projectSlug: string, params: SessionTokenParams = {}, options?: RequestOptions): Promise<SessionToken> {
    const fields = fieldsOf(params, { kept: USER_NAMES, readDirectly: [...USER_NAMES, ...TTL_NAMES] });
    const { user_id, userId, ttl_seconds, ttlSeconds, ...rest } = fields;
    const users = given(params, fields, USER_NAMES);
    rejectMissingUser(users);
    const lifetimes = given(params, fields, TTL_NAMES);
    rejectMissingLifetime(lifetimes);
    const body = { user_id: singleValue(users), ttl_seconds: singleValue(lifetimes), ...rest };
    return this.transport.post(`/v1/agent_projects/${slug(projectSlug)}/session_tokens`, body, options);
  }
}
