import type { ApiKey } from "./resources/api-keys.js";
import type { ModelKey } from "./resources/model-keys.js";
import type { Release } from "./resources/releases.js";

type Data = Record<string, unknown>;

/** The `data` of each event type. */
export interface KartaEventData {
  "api_key.created": { api_key: ApiKey };
  "api_key.updated": { api_key: ApiKey };
  "api_key.rotated": { api_key: ApiKey; replaces: { id: number; expires_at: string | null } };
  "api_key.revoked": { api_key: ApiKey };
  "api_key.expiring": { api_key: ApiKey };
  "model_key.created": { model_key: ModelKey };
  "model_key.revoked": { model_key: ModelKey };
  "budget.threshold": Data & { period: string; cap: string; limit: number; percent: number; spent: number };
  "budget.exhausted": Data & { period: string; reason: string };
  "budget.restored": Data & { period: string };
  "release.created": { release: Release };
  "release.activated": { release: Release };
  "release.rolled_back": { release: Release };
  "webhook_endpoint.disabled": Data;
  "subscription.created": Data;
  "subscription.updated": Data;
  "subscription.deleted": Data;
  "invoice.paid": Data;
  "invoice.payment_failed": Data;
  ping: Data;
}

export type KartaEventType = keyof KartaEventData;

/**
 * An event as endpoints receive it. `type` determines the fields of `data`. Ignore unknown types:
 * more may be added.
 */
export type KartaEvent = {
  [Type in KartaEventType]: {
    /** The same for every attempt. Store it to process each event once. */
    id: string;
    type: Type;
    created_at: string;
    organization_id: number;
    data: KartaEventData[Type];
  };
}[KartaEventType];
