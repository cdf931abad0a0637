import { KartaArgumentError } from "../errors.js";
import { fieldsOf, plain } from "../json.js";
import type { RequestOptions } from "../options.js";
import { slug } from "../path.js";
import { Resource } from "./resource.js";

/** For whom and for how long. `userId` and `ttlSeconds` are other spellings of the API's names. */
export interface SessionTokenParams {
  /** The end user, 1 to 255 bytes: the token is then good for this user's sessions alone. Leave it out for a token bound to nobody. */
  user_id?: string;
  userId?: string;
  /** 60 to 3600; 900 unless given. */
  ttl_seconds?: number | null | undefined;
  ttlSeconds?: number | null | undefined;
}

/** A token that is safe in one end user's browser. */
export interface SessionToken {
  token: string;
  expires_at: string;
  /** Seconds. */
  expires_in: number;
  project: { id: number; slug: string };
  /** The user that it is bound to. */
  sub: string | null;
}

type Name = keyof SessionTokenParams;
const USER_NAMES = ["user_id", "userId"] as const satisfies readonly Name[];
const TTL_NAMES = ["ttl_seconds", "ttlSeconds"] as const satisfies readonly Name[];

/**
 * The values of `params` and of its JSON form `fields` under any of `names`. Inherited fields are in `params` only, and a `toJSON` method may add or drop
 * fields.
 */
function given(params: SessionTokenParams, fields: SessionTokenParams, names: readonly Name[]): [Name, unknown][] {
  return names.flatMap((name) => [params, fields].filter((source) => name in source).map((source): [Name, unknown] => [name, source[name]]));
}

/** Throws KartaArgumentError for a user that is `undefined` or `null`: an empty variable must not become a token that is bound to nobody. */
function refuseNobody(users: [Name, unknown][]): void {
  for (const [name, user] of users) {
    if (user !== undefined && user !== null) continue;
    throw new KartaArgumentError(name, `is ${user}: give the user, or leave it out for a token bound to nobody`);
  }
}

/** The one value of a field; `undefined` if it is absent. Throws KartaArgumentError for two different values. */
function only(values: [Name, unknown][]): unknown {
  const present = values.filter(([, value]) => value !== undefined).map(([name, value]) => [name, plain(value, name)] as const);
  const [first, ...others] = present;
  for (const [name, value] of others) {
    if (JSON.stringify(value) === JSON.stringify(first?.[1])) continue;
    throw new KartaArgumentError(name, `must have one value: ${first?.[0] === name ? "its JSON form" : first?.[0]} has another`);
  }
  return first?.[1];
}

/** Tokens for end users' browsers. */
export class SessionTokens extends Resource {
  /**
   * Mints a token for one project, for one user where `user_id` is given. Never repeated by itself. Scope `write`.
   *
   * @throws {KartaBudgetError} when the budget is exhausted; {KartaNotFoundError} when the organization has no such project; {KartaValidationError};
   * {KartaArgumentError} for a user that is `undefined` or `null`, or for two different users or lifetimes; {KartaForbiddenError} without the scope.
   */
  async mint(projectSlug: string, params: SessionTokenParams = {}, options?: RequestOptions): Promise<SessionToken> {
    const fields = fieldsOf(params, { kept: USER_NAMES, readDirectly: [...USER_NAMES, ...TTL_NAMES] });
    const { user_id, userId, ttl_seconds, ttlSeconds, ...rest } = fields;
    const users = given(params, fields, USER_NAMES);
    refuseNobody(users);
    const body = { user_id: only(users), ttl_seconds: only(given(params, fields, TTL_NAMES)), ...rest };
    return this.transport.post(`/v1/agent_projects/${slug(projectSlug)}/session_tokens`, body, options);
  }
}
