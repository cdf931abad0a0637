import { id } from "../path.js";
import type { List, ListParams } from "../shared/list.js";
import type { RequestOptions } from "../shared/options.js";
import { Resource } from "./resource.js";

/** A recorded change: actor, action, resource, time and request. */
export interface AuditEvent {
  id: number;
  at: string;
  actor: { kind: "api_key" | "service" | "system"; id: number | null; name: string };
  /** Such as `api_key.created`. More actions may be added. */
  action: string;
  /** The id of a session is a string. */
  resource: { kind: string; id: number | string };
  /** Changed values by field. Secrets are never included. */
  changes: Record<string, { before: unknown; after: unknown }>;
  ip_address: string | null;
  user_agent: string | null;
  request_id: string;
  /** Whether the chain of digests confirms the event. */
  chain: { state: "pending" | "verified" | "broken"; link: number | null };
}

/** An action to filter the list by. */
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
  | "session.deleted"
  | "session.transcript_read"
  | "webhook_delivery.replayed"
  | "webhook_endpoint.created"
  | "webhook_endpoint.deleted"
  | "webhook_endpoint.disabled"
  | "webhook_endpoint.recovered"
  | "webhook_endpoint.secret_rotated"
  | "webhook_endpoint.tested"
  | "webhook_endpoint.updated";

/** Filters of a list of audit events. */
export interface AuditEventListParams extends ListParams {
  /** An API key's id, or an actor's exact name. */
  actor?: number | string | undefined;
  /** The exact action. */
  action?: AuditAction | undefined;
}

/** The audit log. */
export class AuditEvents extends Resource {
  /**
   * Lists events, newest first. Scope `admin`. The log may be long: iterate, or pass a `limit`.
   *
   * @throws {KartaForbiddenError} without the scope.
   */
  list(params: AuditEventListParams = {}, options?: RequestOptions): List<AuditEvent> {
    const path = () => {
      const { actor } = (params as AuditEventListParams | null) ?? {};
      // The server would take another number for a name, which no actor has.
      if (typeof actor === "number") id(actor, "actor");
      return "/v1/audit_events";
    };
    return this.listOf("audit_events", path, params, ["actor", "action"], options);
  }
}
