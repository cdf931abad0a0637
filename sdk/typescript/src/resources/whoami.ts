import type { RequestOptions } from "../options.js";
import type { Transport } from "../transport.js";
import type { Scope } from "./api-keys.js";

/** Whom a credential stands for. */
export interface Principal {
  kind: "api_key" | "session";
  organization_id: number;
  organization_slug: string;
  /** Empty for a session token. */
  scopes: Scope[];
  /** The key itself, or the one that minted the session token. */
  api_key_id: number;
  /** `null` for a session token. */
  api_key_prefix: string | null;
  /** A session token's; `null` for an API key. */
  project_id: number | null;
  project_slug: string | null;
  sub: string | null;
  budget_ok: boolean;
  budget_reason: string | null;
}

/** The Principal of the client's own key. */
export function whoami(transport: Transport, options: RequestOptions | undefined): Promise<Principal> {
  return transport.get("/v1/whoami", {}, options);
}
