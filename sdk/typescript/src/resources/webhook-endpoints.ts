import type { KartaEventType } from "../events.js";
import { fieldsOf } from "../json.js";
import { GRACE_RULES } from "../limit-rules.js";
import type { List, ListParams } from "../shared/list.js";
import type { CreateOptions, RequestOptions } from "../shared/options.js";
import { id } from "../path.js";
import { Resource } from "./resource.js";

/** A URL that receives events. */
export interface WebhookEndpoint {
  id: number;
  url: string;
  description: string | null;
  /** `*` means all types. */
  event_types: (KartaEventType | "*")[];
  enabled: boolean;
  /**
   * `requested`: an admin disabled it; `gone`: it returned 410; `failing`: it failed for too long.
   */
  disabled_reason: "requested" | "gone" | "failing" | null;
  consecutive_failures: number;
  created_at: string;
}

/** A new endpoint. */
export interface WebhookEndpointCreateParams {
  url: string;
  event_types: readonly (KartaEventType | "*")[];
  description?: string | null | undefined;
}

/**
 * Changes to an endpoint. Absent fields keep their value, `null` clears it, `event_types` is
 * replaced.
 */
export interface WebhookEndpointUpdateParams {
  url?: string | undefined;
  event_types?: readonly (KartaEventType | "*")[] | undefined;
  description?: string | null | undefined;
  /** `true` enables a disabled endpoint again. */
  enabled?: boolean | undefined;
}

/** An endpoint with its signing secret, which is shown only once. */
export interface CreatedWebhookEndpoint {
  webhook_endpoint: WebhookEndpoint;
  /** `whsec_…`, the secret for `verifyWebhook`. */
  secret: string;
}

export type DeliveryStatus = "pending" | "succeeded" | "failed";

/** The delivery of one event to one endpoint. */
export interface Delivery {
  id: number;
  event_id: string;
  event_type: KartaEventType;
  status: DeliveryStatus;
  attempts: DeliveryAttempt[];
  next_attempt_at: string | null;
}

export interface DeliveryAttempt {
  at: string;
  response_code: number | null;
  latency_ms: number;
  /** First KiB of the body without secrets; only for keys with the scope `admin`. */
  response_body: string | null;
  error: string | null;
}

/** A recovery of the deliveries that failed between `since` and `until`. */
export interface Recovery {
  webhook_endpoint_id: number;
  since: string;
  until: string;
}

/** The organization's webhook endpoints. */
export class WebhookEndpoints extends Resource {
  /**
   * Lists endpoints, newest first. Scope `read`.
   *
   * @throws {KartaForbiddenError} without the scope.
   */
  list(params: ListParams = {}, options?: RequestOptions): List<WebhookEndpoint> {
    return this.listOf("webhook_endpoints", () => "/v1/webhook_endpoints", params, [], options);
  }

  /**
   * Creates an endpoint. Store `secret`: it is shown only once. Scope `admin`.
   *
   * @throws {KartaValidationError} for a URL that is not public https, or an unknown event type;
   * {KartaForbiddenError} without the scope.
   */
  async create(params: WebhookEndpointCreateParams, options?: CreateOptions): Promise<CreatedWebhookEndpoint> {
    return this.transport.create("/v1/webhook_endpoints", params, options);
  }

  /**
   * Returns an endpoint. Scope `read`.
   *
   * @throws {KartaNotFoundError}; {KartaForbiddenError} without the scope.
   */
  async get(endpointId: number, options?: RequestOptions): Promise<{ webhook_endpoint: WebhookEndpoint }> {
    return this.transport.get(this.#path(endpointId), {}, options);
  }

  /**
   * Changes an endpoint. Scope `admin`.
   *
   * @throws {KartaNotFoundError}; {KartaValidationError}; {KartaForbiddenError} without the scope.
   */
  async update(
    endpointId: number,
    params: WebhookEndpointUpdateParams,
    options?: RequestOptions,
  ): Promise<{ webhook_endpoint: WebhookEndpoint }> {
    return this.transport.patch(this.#path(endpointId), params, options);
  }

  /**
   * Deletes an endpoint. Scope `admin`.
   *
   * @throws {KartaNotFoundError}, also if an earlier attempt deleted it and its response was lost;
   * {KartaForbiddenError} without the scope.
   */
  async delete(endpointId: number, options?: RequestOptions): Promise<void> {
    return this.transport.delete(this.#path(endpointId), options);
  }

  /**
   * Creates a new signing secret. Both secrets sign for `grace_seconds`. Store `secret`: it is
   * shown only once. Scope `admin`.
   *
   * @throws {KartaNotFoundError}; {KartaArgumentError} for a `grace_seconds` that is `undefined`;
   * {KartaForbiddenError} without the scope.
   */
  async rotateSecret(
    endpointId: number,
    params: { grace_seconds?: number | null } = {},
    options?: CreateOptions,
  ): Promise<CreatedWebhookEndpoint> {
    return this.transport.create(`${this.#path(endpointId)}/rotate_secret`, fieldsOf(params, GRACE_RULES), options);
  }

  /**
   * Sends a signed `ping`. Never retried. Scope `admin`.
   *
   * @throws {KartaNotFoundError}; {KartaForbiddenError} without the scope.
   */
  async test(endpointId: number, options?: RequestOptions): Promise<{ delivery: Delivery }> {
    return this.transport.post(`${this.#path(endpointId)}/test`, undefined, options);
  }

  /**
   * Lists deliveries with their attempts, newest first. Scope `read`.
   *
   * @throws {KartaNotFoundError}; {KartaForbiddenError} without the scope.
   */
  deliveries(
    endpointId: number,
    params: ListParams & { status?: DeliveryStatus | readonly DeliveryStatus[] | undefined } = {},
    options?: RequestOptions,
  ): List<Delivery> {
    return this.listOf("deliveries", () => `${this.#path(endpointId)}/deliveries`, params, ["status"], options);
  }

  /**
   * Sends a delivery again. Never retried. Scope `admin`.
   *
   * @throws {KartaNotFoundError}; {KartaForbiddenError} without the scope.
   */
  async replay(endpointId: number, deliveryId: number, options?: RequestOptions): Promise<{ delivery: Delivery }> {
    const path = `${this.#path(endpointId)}/deliveries/${id(deliveryId, "deliveryId")}/replay`;
    return this.transport.post(path, undefined, options);
  }

  /**
   * Sends all deliveries again that failed since `since` (RFC 3339). Never retried. Scope `admin`.
   *
   * @throws {KartaNotFoundError}; {KartaValidationError}; {KartaForbiddenError} without the scope.
   */
  async recover(endpointId: number, params: { since: string }, options?: RequestOptions): Promise<{ recovery: Recovery }> {
    return this.transport.post(`${this.#path(endpointId)}/recover`, params, options);
  }

  #path(endpointId: number): string {
    return `/v1/webhook_endpoints/${id(endpointId)}`;
  }
}
