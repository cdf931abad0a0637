import { KartaArgumentError } from "../errors.js";
import { fieldsOf } from "../json.js";
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

/** Tokens for end users' browsers. */
export class SessionTokens extends Resource {
  /**
   * Mints a token for one project, for one user where `user_id` is given. Never repeated by itself. Scope `write`.
   *
   * @throws {KartaBudgetError} when the budget is exhausted; {KartaNotFoundError} when the organization has no such project; {KartaValidationError};
   * {KartaArgumentError} for a user that is `undefined` or `null`; {KartaForbiddenError} without the scope.
   */
  async mint(projectSlug: string, params: SessionTokenParams = {}, options?: RequestOptions): Promise<SessionToken> {
    const { userId, ttlSeconds, ...rest } = fieldsOf(params);
    for (const field of ["user_id", "userId"] as const) {
      // A token for nobody in particular must not come about because a variable was empty.
      if (field in params && (params[field] ?? undefined) === undefined) {
        throw new KartaArgumentError(field, `is ${params[field]}: give the user, or leave it out for a token bound to nobody`);
      }
    }
    const body = { user_id: userId, ttl_seconds: ttlSeconds, ...rest };
    return this.transport.post(`/v1/agent_projects/${slug(projectSlug)}/session_tokens`, body, options);
  }
}
