import { NESTED_BUDGET_RULES } from "../budget-rules.js";
import { fieldsOf } from "../json.js";
import type { List, ListParams } from "../list.js";
import type { CreateOptions, RequestOptions } from "../options.js";
import { id } from "../path.js";
import type { Budget, BudgetParams } from "./budget.js";
import { Resource } from "./resource.js";

/** What a key may do; none implies another. */
export type Scope = "read" | "write" | "admin";

/** `rotating`: replaced, and still good until `expires_at`. */
export type ApiKeyStatus = "active" | "rotating" | "revoked" | "expired";

/** What may be known of an API key. Times are RFC 3339 in UTC. */
export interface ApiKey {
  id: number;
  name: string;
  /** The token's first 14 characters; public. */
  prefix: string;
  scopes: Scope[];
  status: ApiKeyStatus;
  created_at: string;
  /** The key that made it; `null` for an organization's first. */
  created_by: number | null;
  /** May lag a minute. */
  last_used_at: string | null;
  expires_at: string | null;
  revoked_at: string | null;
  /** Its successor after a rotation. */
  replaced_by: number | null;
  /** Where it may be used from; empty: anywhere. */
  allowed_cidrs: string[];
  budget: Budget | null;
  metadata: Record<string, string>;
}

/** Which keys to list; a key must pass all that is given. */
export interface ApiKeyListParams extends ListParams {
  status?: ApiKeyStatus | readonly ApiKeyStatus[] | undefined;
  /** Not used in so many days, 1 to 3650. */
  unused_days?: number | undefined;
  /** Ending within so many days, 1 to 3650. */
  expires_within_days?: number | undefined;
}

/** What a new key may have besides name and scopes. */
export interface ApiKeyCreateParams {
  expires_at?: string | null | undefined;
  allowed_cidrs?: readonly string[] | null | undefined;
  budget?: BudgetParams | null | undefined;
  metadata?: Readonly<Record<string, string>> | null | undefined;
}

/** What to change: absent keeps, `null` clears, lists and `metadata` replace. */
export interface ApiKeyUpdateParams extends ApiKeyCreateParams {
  name?: string | undefined;
  scopes?: readonly Scope[] | undefined;
}

/** A key that was just made. `secret` is its token, shown this once. */
export interface CreatedApiKey {
  api_key: ApiKey;
  secret: string;
}

/** A successor that was just made, and until when the old key serves. */
export interface RotatedApiKey extends CreatedApiKey {
  replaces: { id: number; expires_at: string | null };
}

/** The organization's API keys. */
export class ApiKeys extends Resource {
  /**
   * Keys, newest first. Scope `read`.
   *
   * @throws {KartaForbiddenError} without the scope; {KartaValidationError} for a filter that cannot be.
   */
  list(params: ApiKeyListParams = {}, options?: RequestOptions): List<ApiKey> {
    return this.listOf("api_keys", () => "/v1/api_keys", params, ["status", "unused_days", "expires_within_days"], options);
  }

  /**
   * A new key. Store `secret` now: it is shown this once. Scope `admin`.
   *
   * @throws {KartaValidationError} for bad input; {KartaArgumentError} for a cap that is `undefined`; {KartaForbiddenError} without the scope.
   */
  async create(
    name: string,
    scopes: readonly Scope[],
    params: ApiKeyCreateParams = {},
    options?: CreateOptions,
  ): Promise<CreatedApiKey> {
    return this.transport.create("/v1/api_keys", { ...fieldsOf(params, NESTED_BUDGET_RULES), name, scopes }, options);
  }

  /**
   * One key; also a revoked one. Scope `read`.
   *
   * @throws {KartaNotFoundError} when the organization has no such key; {KartaForbiddenError} without the scope.
   */
  async get(apiKeyId: number, options?: RequestOptions): Promise<{ api_key: ApiKey }> {
    return this.transport.get(`/v1/api_keys/${id(apiKeyId)}`, {}, options);
  }

  /**
   * Changes a key. Scope `admin`.
   *
   * @throws {KartaConflictError} `last_admin_key`, `api_key_revoked`, `api_key_replaced`; {KartaNotFoundError}; {KartaValidationError};
   * {KartaArgumentError} for a cap that is `undefined`; {KartaForbiddenError} without the scope.
   */
  async update(apiKeyId: number, params: ApiKeyUpdateParams, options?: RequestOptions): Promise<{ api_key: ApiKey }> {
    return this.transport.patch(`/v1/api_keys/${id(apiKeyId)}`, fieldsOf(params, NESTED_BUDGET_RULES), options);
  }

  /**
   * Makes a successor with the same settings; the old key goes on serving for `grace_seconds` (a day unless given). Store `secret` now: it is shown
   * this once. Scope `admin`.
   *
   * @throws {KartaConflictError} `api_key_not_active`, `last_admin_key`; {KartaNotFoundError}; {KartaForbiddenError} without the scope.
   */
  async rotate(
    apiKeyId: number,
    params: { grace_seconds?: number | null | undefined } = {},
    options?: CreateOptions,
  ): Promise<RotatedApiKey> {
    return this.transport.create(`/v1/api_keys/${id(apiKeyId)}/rotate`, params, options);
  }

  /**
   * Ends a key for good. A repeat answers the same. Scope `admin`.
   *
   * @throws {KartaConflictError} `last_admin_key`; {KartaNotFoundError}; {KartaForbiddenError} without the scope.
   */
  async revoke(apiKeyId: number, options?: RequestOptions): Promise<{ api_key: ApiKey }> {
    return this.transport.delete(`/v1/api_keys/${id(apiKeyId)}`, options);
  }
}
