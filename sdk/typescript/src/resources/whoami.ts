import type { RequestOptions } from "../shared/options.js";
import type { Transport } from "../transport.js";
import type { Scope } from "./api-keys.js";

/** The identity of a credential. */
export interface Principal {
  kind: "api_key" | "session";
  organization_id: number;
  organization_slug: string;
  /** Empty for a session token. */
  scopes: Scope[];
  /** Id of the key, or of the key that minted the session token. */
  api_key_id: number;
  /** `null` for a session token. */
  api_key_prefix: string | null;
  /** Project of a session token; `null` for an API key. */
  project_id: number | null;
  project_slug: string | null;
  sub: string | null;
  budget_ok: boolean;
  budget_reason: string | null;
}

/** Returns the principal of the client's key. */
export function whoami(transport: Transport, options: RequestOptions | undefined): Promise<Principal> {
  return transport.get("/v1/whoami", {}, options);
}
