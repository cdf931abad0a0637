// The document's operations and the client's methods take and answer the same. Where they do not on purpose, it is said here and in compare.ts.
import type { operations } from "../build/openapi.js";
import type { Karta, SessionTokenParams, Usage } from "../dist/esm/index.js";
import type { Client, ClientList, Differences, Documented, Json } from "./compare.js";

/** By operation id, the method and where its arguments go. */
interface Calls {
  agentProjectsCreate: Client<Karta["projects"]["create"], ["body"]>;
  agentProjectsGet: Client<Karta["projects"]["get"], ["path.slug"]>;
  agentProjectsList: ClientList<Karta["projects"]["list"], ["query"], "agent_projects">;
  agentProjectsUpdate: Client<Karta["projects"]["update"], ["path.slug", "body"]>;
  apiKeysCreate: Client<Karta["apiKeys"]["create"], ["body.name", "body.scopes", "body"]>;
  apiKeysGet: Client<Karta["apiKeys"]["get"], ["path.id"]>;
  apiKeysList: ClientList<Karta["apiKeys"]["list"], ["query"], "api_keys">;
  apiKeysRevoke: Client<Karta["apiKeys"]["revoke"], ["path.id"]>;
  apiKeysRotate: Client<Karta["apiKeys"]["rotate"], ["path.id", "body"]>;
  apiKeysUpdate: Client<Karta["apiKeys"]["update"], ["path.id", "body"]>;
  auditEventsList: ClientList<Karta["auditEvents"]["list"], ["query"], "audit_events">;
  billingGet: Client<Karta["billing"]["status"], []>;
  budgetGet: Client<Karta["budget"]["get"], []>;
  budgetUpdate: Client<Karta["budget"]["update"], ["body"]>;
  deploysCreate: Client<Karta["deploys"]["create"], ["path.slug", "body"]>;
  modelKeysCreate: Client<Karta["modelKeys"]["create"], ["body.provider", "body.key", "body.name"]>;
  modelKeysList: ClientList<Karta["modelKeys"]["list"], ["query"], "model_keys">;
  modelKeysRevoke: Client<Karta["modelKeys"]["revoke"], ["path.id"]>;
  projectsWhoami: Client<Karta["projects"]["whoami"], ["path.ref"]>;
  releaseLogsList: ClientList<Karta["releases"]["logs"], ["path.slug", "path.version", "query"], "logs">;
  releasesList: ClientList<Karta["releases"]["list"], ["path.slug", "query"], "releases">;
  releasesRollback: Client<Karta["releases"]["rollback"], ["path.slug", "body.version"]>;
  sessionTokensCreate: Client<Mint, ["path.slug", "body"]>;
  usageGet: Client<Karta["usage"]["summary"], ["query"]>;
  usageKeysList: UsageKeys;
  webhookDeliveriesList: ClientList<Karta["webhookEndpoints"]["deliveries"], ["path.id", "query"], "deliveries">;
  webhookDeliveriesReplay: Client<Karta["webhookEndpoints"]["replay"], ["path.id", "path.delivery_id"]>;
  webhookEndpointsCreate: Client<Karta["webhookEndpoints"]["create"], ["body"]>;
  webhookEndpointsDelete: Client<Karta["webhookEndpoints"]["delete"], ["path.id"]>;
  webhookEndpointsGet: Client<Karta["webhookEndpoints"]["get"], ["path.id"]>;
  webhookEndpointsList: ClientList<Karta["webhookEndpoints"]["list"], ["query"], "webhook_endpoints">;
  webhookEndpointsRecover: Client<Karta["webhookEndpoints"]["recover"], ["path.id", "body"]>;
  webhookEndpointsRotateSecret: Client<Karta["webhookEndpoints"]["rotateSecret"], ["path.id", "body"]>;
  webhookEndpointsTest: Client<Karta["webhookEndpoints"]["test"], ["path.id"]>;
  webhookEndpointsUpdate: Client<Karta["webhookEndpoints"]["update"], ["path.id", "body"]>;
  whoami: Client<Karta["whoami"], []>;
}

/** For load balancers and readers, and the second path of one route. */
type Others = "docsGet" | "healthz" | "openapiGet" | "sessionTokensCreateUnversioned";

/** The API's names alone. That there is no user is said by leaving it out, not by `null`. */
type Mint = (
  slug: string,
  params: Omit<SessionTokenParams, "userId" | "ttlSeconds" | "user_id"> & OrNull<Pick<SessionTokenParams, "user_id">>,
  options?: Parameters<Karta["sessionTokens"]["mint"]>[2],
) => ReturnType<Karta["sessionTokens"]["mint"]>;

type OrNull<T> = { [Field in keyof T]: null extends T[Field] ? never : T[Field] | null };

/** The month is in each item, too. */
interface UsageKeys extends Omit<ClientList<Karta["usage"]["keys"], ["query"], "keys">, "answer"> {
  answer: ClientList<Karta["usage"]["keys"], ["query"], "keys">["answer"] & Pick<Usage, "period">;
}

export type ClientSide = { [Id in keyof Calls]: Json<Calls[Id]> };
type DocumentSide = { [Id in keyof operations]: Json<Documented<operations[Id]>> };

/** Operations that have no line, lines that have no operation, and where a line and its operation differ. */
export type Disagreements =
  | Exclude<keyof operations, keyof Calls | Others>
  | Exclude<keyof Calls | Others, keyof operations>
  | { [Id in keyof Calls & keyof operations]: Differences<ClientSide[Id], DocumentSide[Id], Id> }[keyof Calls & keyof operations];

export const none: [Disagreements] extends [never] ? true : Disagreements = true;
