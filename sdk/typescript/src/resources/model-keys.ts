import type { List, ListParams } from "../shared/list.js";
import type { CreateOptions, RequestOptions } from "../shared/options.js";
import { id } from "../path.js";
import { Resource } from "./resource.js";

export type Provider = "anthropic" | "openai" | "bedrock" | "vertex" | "openrouter";

/** A provider's key without its secret, which is never returned. */
export interface ModelKey {
  id: number;
  provider: Provider;
  name: string | null;
  /** Last four characters of the key. */
  tail: string;
  created_at: string;
  /** `null` for the key in use. */
  revoked_at: string | null;
}

/** The organization's own keys for model providers (BYOK). */
export class ModelKeys extends Resource {
  /**
   * Lists keys, also revoked ones, newest first. Scope `read`.
   *
   * @throws {KartaForbiddenError} without the scope.
   */
  list(params: ListParams = {}, options?: RequestOptions): List<ModelKey> {
    return this.listOf("model_keys", () => "/v1/model_keys", params, [], options);
  }

  /**
   * Stores a key, which replaces the provider's current one. For `bedrock` and `vertex`, `key` is
   * the provider's JSON as text. Scope `admin`.
   *
   * @throws {KartaValidationError} with code `byok_key_rejected` if the text cannot be a key of the
   * provider; {KartaForbiddenError} without the scope.
   */
  async create(
    provider: Provider,
    key: string,
    name?: string | null,
    options?: CreateOptions,
  ): Promise<{ model_key: ModelKey }> {
    return this.transport.create("/v1/model_keys", { provider, key, name }, options);
  }

  /**
   * Revokes a key and destroys it. A repeated call returns the same result. Scope `admin`.
   *
   * @throws {KartaNotFoundError} if the organization has no such key; {KartaForbiddenError} without
   * the scope.
   */
  async revoke(modelKeyId: number, options?: RequestOptions): Promise<{ model_key: ModelKey }> {
    return this.transport.delete(`/v1/model_keys/${id(modelKeyId)}`, options);
  }
}
