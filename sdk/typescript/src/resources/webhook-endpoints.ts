import type { KartaEventType } from "../events.js";
import type { List, ListParams } from "../list.js";
import type { CreateOptions, RequestOptions } from "../options.js";
import { id } from "../path.js";
import { Resource } from "./resource.js";

/** Where events are sent. */
export interface WebhookEndpoint {
  id: number;
  url: string;
  description: string | null;
  /** `*` is all. */
  event_types: (KartaEventType | "*")[];
  enabled: boolean;
  /** Why it is not. `requested`: by an admin; `gone`: receiver returned 410; `failing`: for too long. */
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

/** What to change: absent keeps, `null` clears, `event_types` replaces. */
export interface WebhookEndpointUpdateParams {
  url?: string | undefined;
  event_types?: readonly (KartaEventType | "*")[] | undefined;
  description?: string | null | undefined;
  /** `true` revives a disabled endpoint. */
  enabled?: boolean | undefined;
}

/** An endpoint and what its deliveries are signed with, shown this once. */
export interface CreatedWebhookEndpoint {
  webhook_endpoint: WebhookEndpoint;
  /** `whsec_…`: verifies deliveries; see `verifyWebhook`. */
  secret: string;
}

export type DeliveryStatus = "pending" | "succeeded" | "failed";

/** One event on its way to one endpoint. */
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
  /** The first KiB, scrubbed; for keys with `admin` alone. */
  response_body: string | null;
  error: string | null;
}

/** What is looked through for deliveries that failed. */
export interface Recovery {
  webhook_endpoint_id: number;
  since: string;
  until: string;
}

/** The organization's webhook endpoints. */
export class WebhookEndpoints extends Resource {
  /**
   * Endpoints, newest first. Scope `read`.
   *
   * @throws {KartaForbiddenError} without the scope.
   */
  list(params: ListParams = {}, options?: RequestOptions): List<WebhookEndpoint> {
    return this.listOf("webhook_endpoints", () => "/v1/webhook_endpoints", params, [], options);
  }

  /**
   * A new endpoint. Store `secret` now: it is shown this once. Scope `admin`.
   *
   * @throws {KartaValidationError} for a URL that is not public https, or an unknown event type; {KartaForbiddenError} without the scope.
   */
  async create(params: WebhookEndpointCreateParams, options?: CreateOptions): Promise<CreatedWebhookEndpoint> {
    return this.transport.create("/v1/webhook_endpoints", params, options);
  }

  /**
   * One endpoint. Scope `read`.
   *
   * @throws {KartaNotFoundError}; {KartaForbiddenError} without the scope.
   */
  async get(endpointId: number, options?: RequestOptions): Promise<{ webhook_endpoint: WebhookEndpoint }> {
    return this.transport.get(this.#path(endpointId), {}, options);
  }

  /**
   * Changes an endpoint; `enabled: true` revives one that was disabled. Scope `admin`.
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
   * Removes an endpoint. Scope `admin`.
   *
   * @throws {KartaNotFoundError}, also for one that a lost answer had removed; {KartaForbiddenError} without the scope.
   */
  async delete(endpointId: number, options?: RequestOptions): Promise<void> {
    return this.transport.delete(this.#path(endpointId), options);
  }

  /**
   * A new signing secret; both sign for `grace_seconds`. Store `secret` now: it is shown this once. Scope `admin`.
   *
   * @throws {KartaNotFoundError}; {KartaForbiddenError} without the scope.
   */
  async rotateSecret(
    endpointId: number,
    params: { grace_seconds?: number | null | undefined } = {},
    options?: CreateOptions,
  ): Promise<CreatedWebhookEndpoint> {
    return this.transport.create(`${this.#path(endpointId)}/rotate_secret`, params, options);
  }

  /**
   * Has a signed `ping` sent. Never repeated by itself. Scope `admin`.
   *
   * @throws {KartaNotFoundError}; {KartaForbiddenError} without the scope.
   */
  async test(endpointId: number, options?: RequestOptions): Promise<{ delivery: Delivery }> {
    return this.transport.post(`${this.#path(endpointId)}/test`, undefined, options);
  }

  /**
   * What was sent, newest first, with every attempt. Scope `read`.
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
   * Sends one delivery again. Never repeated by itself. Scope `admin`.
   *
   * @throws {KartaNotFoundError}; {KartaForbiddenError} without the scope.
   */
  async replay(endpointId: number, deliveryId: number, options?: RequestOptions): Promise<{ delivery: Delivery }> {
    const path = `${this.#path(endpointId)}/deliveries/${id(deliveryId, "deliveryId")}/replay`;
    return this.transport.post(path, undefined, options);
  }

  /**
   * Sends again whatever failed since `since` (RFC 3339). Never repeated by itself. Scope `admin`.
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
