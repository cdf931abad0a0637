import { KartaArgumentError } from "../errors.js";
import { fieldsOf } from "../json.js";
import { GRACE_RULES, KEY_RULES, KEY_UPDATE_RULES } from "../limit-rules.js";
import type { List, ListParams } from "../shared/list.js";
import type { CreateOptions, RequestOptions } from "../shared/options.js";
import { id } from "../path.js";
import type { Budget, BudgetParams } from "./budget.js";
import { Resource } from "./resource.js";

/** A permission of a key. No scope implies another. */
export type Scope = "read" | "write" | "admin";

/** `rotating`: replaced, but valid until `expires_at`. */
export type ApiKeyStatus = "active" | "rotating" | "revoked" | "expired";

/** An API key without its token. Times are RFC 3339 in UTC. */
export interface ApiKey {
  id: number;
  name: string;
  /** First 14 characters of the token; not secret. */
  prefix: string;
  scopes: Scope[];
  status: ApiKeyStatus;
  created_at: string;
  /** Id of the key that created it; `null` for an organization's first key. */
  created_by: number | null;
  /** Up to a minute late. */
  last_used_at: string | null;
  expires_at: string | null;
  revoked_at: string | null;
  /** Id of its successor after a rotation. */
  replaced_by: number | null;
  /** Address ranges from which the key is accepted; an empty list allows all. */
  allowed_cidrs: string[];
  budget: Budget | null;
  metadata: Record<string, string>;
}

/** Filters of a list of keys. Filters combine with AND. */
export interface ApiKeyListParams extends ListParams {
  status?: ApiKeyStatus | readonly ApiKeyStatus[] | undefined;
  /** Keys that were not used in this many days, 1 to 3650. */
  unused_days?: number | undefined;
  /** Keys that expire within this many days, 1 to 3650. */
  expires_within_days?: number | undefined;
}

/** Optional fields of a new key. Absent and `null` limits mean no limit; `undefined` is rejected. */
export interface ApiKeyCreateParams {
  expires_at?: string | null;
  allowed_cidrs?: readonly string[] | null;
  budget?: BudgetParams | null;
  metadata?: Readonly<Record<string, string>> | null | undefined;
}

/**
 * Changes to a key. Absent fields keep their value, `null` clears it, lists and `metadata` are
 * replaced. Limits and scopes that are `undefined` are rejected.
 */
export interface ApiKeyUpdateParams extends ApiKeyCreateParams {
  name?: string | undefined;
  scopes?: readonly Scope[];
}

/** A new key. `secret` is its token, which is shown only once. */
export interface CreatedApiKey {
  api_key: ApiKey;
  secret: string;
}

/** The successor of a rotated key, and the time when the old key expires. */
export interface RotatedApiKey extends CreatedApiKey {
  replaces: { id: number; expires_at: string | null };
}

/** The organization's API keys. */
export class ApiKeys extends Resource {
  /**
   * Lists keys, newest first. Scope `read`.
   *
   * @throws {KartaForbiddenError} without the scope; {KartaValidationError} for an invalid filter.
   */
  list(params: ApiKeyListParams = {}, options?: RequestOptions): List<ApiKey> {
    return this.listOf("api_keys", () => "/v1/api_keys", params, ["status", "unused_days", "expires_within_days"], options);
  }

  /**
   * Creates a key. Store `secret`: it is shown only once. Scope `admin`.
   *
   * @throws {KartaValidationError} for invalid input; {KartaArgumentError} for a limit that
   * is `undefined`, or for another name or other scopes in `params`; {KartaForbiddenError} without the
   * scope.
   */
  async create(
    name: string,
    scopes: readonly Scope[],
    params: ApiKeyCreateParams = {},
    options?: CreateOptions,
  ): Promise<CreatedApiKey> {
    const fields: ApiKeyUpdateParams = fieldsOf(params, KEY_RULES);
    const body = fieldsOf({ ...fields, name, scopes });
    for (const field of ["name", "scopes"] as const) {
      if (!(field in fields) || JSON.stringify(fields[field]) === JSON.stringify(body[field])) continue;
      throw new KartaArgumentError(field, `differs from params.${field}: pass it only as an argument`);
    }
    return this.transport.create("/v1/api_keys", body, options);
  }

  /**
   * Returns a key, also a revoked one. Scope `read`.
   *
   * @throws {KartaNotFoundError} if the organization has no such key; {KartaForbiddenError} without
   * the scope.
   */
  async get(apiKeyId: number, options?: RequestOptions): Promise<{ api_key: ApiKey }> {
    return this.transport.get(`/v1/api_keys/${id(apiKeyId)}`, {}, options);
  }

  /**
   * Changes a key. Scope `admin`.
   *
   * @throws {KartaConflictError} `last_admin_key`, `api_key_revoked`, `api_key_replaced`;
   * {KartaNotFoundError}; {KartaValidationError}; {KartaArgumentError} for a limit or scopes that are `undefined`; {KartaForbiddenError} without the scope.
   */
  async update(apiKeyId: number, params: ApiKeyUpdateParams, options?: RequestOptions): Promise<{ api_key: ApiKey }> {
    return this.transport.patch(`/v1/api_keys/${id(apiKeyId)}`, fieldsOf(params, KEY_UPDATE_RULES), options);
  }

  /**
   * Creates a successor with the same settings. The old key stays valid for `grace_seconds`
   * (default: one day). Store `secret`: it is shown only once. Scope `admin`.
   *
   * @throws {KartaConflictError} `api_key_not_active`; {KartaNotFoundError}; {KartaValidationError}
   * for `grace_seconds`, also if the last admin key rotates itself with a short grace period;
   * {KartaArgumentError} for a `grace_seconds` that is `undefined`; {KartaForbiddenError} without
   * the scope.
   */
  async rotate(
    apiKeyId: number,
    params: { grace_seconds?: number | null } = {},
    options?: CreateOptions,
  ): Promise<RotatedApiKey> {
    return this.transport.create(`/v1/api_keys/${id(apiKeyId)}/rotate`, fieldsOf(params, GRACE_RULES), options);
  }

  /**
   * Revokes a key permanently. A repeated call returns the same result. Scope `admin`.
   *
   * @throws {KartaConflictError} `last_admin_key`; {KartaNotFoundError}; {KartaForbiddenError}
   * without the scope.
   */
  async revoke(apiKeyId: number, options?: RequestOptions): Promise<{ api_key: ApiKey }> {
    return this.transport.delete(`/v1/api_keys/${id(apiKeyId)}`, options);
  }
}
