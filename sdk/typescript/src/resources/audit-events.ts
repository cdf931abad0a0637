import type { List, ListParams } from "../list.js";
import type { RequestOptions } from "../options.js";
import { Resource } from "./resource.js";

/** Who did what to which resource, when and from where. */
export interface AuditEvent {
  id: number;
  at: string;
  actor: { kind: "api_key" | "service" | "system"; id: number | null; name: string };
  /** `api_key.created`. Actions may be added. */
  action: string;
  resource: { kind: string; id: number };
  /** By field; never a secret. */
  changes: Record<string, { before: unknown; after: unknown }>;
  ip_address: string | null;
  user_agent: string | null;
  request_id: string;
  /** Whether the chain of digests bears the event out. */
  chain: { state: "pending" | "verified" | "broken"; link: number | null };
}

/** An action that the list can be filtered by. */
export type AuditAction =
  | "agent_project.created"
  | "agent_project.updated"
  | "api_key.created"
  | "api_key.revoked"
  | "api_key.rotated"
  | "api_key.updated"
  | "budget.updated"
  | "model_key.created"
  | "model_key.revoked"
  | "organization.created"
  | "organization.updated"
  | "release.activated"
  | "release.created"
  | "release.rolled_back"
  | "release.updated"
  | "webhook_delivery.replayed"
  | "webhook_endpoint.created"
  | "webhook_endpoint.deleted"
  | "webhook_endpoint.disabled"
  | "webhook_endpoint.recovered"
  | "webhook_endpoint.secret_rotated"
  | "webhook_endpoint.tested"
  | "webhook_endpoint.updated";

/** Which events to list. */
export interface AuditEventListParams extends ListParams {
  /** An API key's id, or an actor's exact name. */
  actor?: number | string | undefined;
  /** Exactly this action. */
  action?: AuditAction | undefined;
}

/** The audit log. */
export class AuditEvents extends Resource {
  /**
   * Events, newest first. Scope `admin`. A log is long: iterate, or give a `limit`.
   *
   * @throws {KartaForbiddenError} without the scope.
   */
  list(params: AuditEventListParams = {}, options?: RequestOptions): List<AuditEvent> {
    return this.listOf("audit_events", () => "/v1/audit_events", params, ["actor", "action"], options);
  }
}
