import type { List, ListParams } from "../list.js";
import type { RequestOptions } from "../options.js";
import { Resource } from "./resource.js";

/** Who did what to which resource, when and from where. */
export interface AuditEvent {
  id: number;
  at: string;
  actor: { kind: "api_key" | "service" | "system"; id: number | null; name: string };
  /** `api_key.created`. */
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

/** Which events to list. */
export interface AuditEventListParams extends ListParams {
  /** An API key's id, or an actor's exact name. */
  actor?: number | string | undefined;
  /** Exactly this action. */
  action?: string | undefined;
}

/** The audit log. */
export class AuditEvents extends Resource {
  /**
   * Events, newest first. Scope `admin`. A log is long: iterate, or give a `limit`.
   *
   * @throws {KartaForbiddenError} without the scope.
   */
  list(params: AuditEventListParams = {}, options?: RequestOptions): List<AuditEvent> {
    const { actor, action } = params;
    return this.listOf("audit_events", () => "/v1/audit_events", params, { actor, action }, options);
  }
}
