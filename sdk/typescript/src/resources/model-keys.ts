import type { List, ListParams } from "../list.js";
import type { CreateOptions, RequestOptions } from "../options.js";
import { id } from "../path.js";
import { Resource } from "./resource.js";

export type Provider = "anthropic" | "openai" | "bedrock" | "vertex" | "openrouter";

/** What may be known of a provider's key. The key itself never comes back. */
export interface ModelKey {
  id: number;
  provider: Provider;
  name: string | null;
  /** Its last four characters. */
  tail: string;
  created_at: string;
  /** `null` for the one in use. */
  revoked_at: string | null;
}

/** The organization's own keys for model providers (BYOK). */
export class ModelKeys extends Resource {
  /**
   * Keys, newest first; revoked ones too. Scope `read`.
   *
   * @throws {KartaForbiddenError} without the scope.
   */
  list(params: ListParams = {}, options?: RequestOptions): List<ModelKey> {
    return this.listOf("model_keys", () => "/v1/model_keys", params, [], options);
  }

  /**
   * Puts a key into use, in the place of the provider's present one. For `bedrock` and `vertex`, `key` is the provider's JSON, as text.
   * Scope `admin`.
   *
   * @throws {KartaValidationError} with code `byok_key_rejected` for what cannot be the provider's key; {KartaForbiddenError} without the scope.
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
   * Takes a key out of use and destroys it. A repeat answers the same. Scope `admin`.
   *
   * @throws {KartaNotFoundError} when the organization has no such key; {KartaForbiddenError} without the scope.
   */
  async revoke(modelKeyId: number, options?: RequestOptions): Promise<{ model_key: ModelKey }> {
    return this.transport.delete(`/v1/model_keys/${id(modelKeyId)}`, options);
  }
}
