// Compares the parameters and results of the client's methods with the operations of openapi.json.
// This file and compare.ts list the intended differences.
import type { operations } from "../build/openapi.js";
import type { Karta, SessionTokenParams, Usage } from "../dist/esm/index.js";
import type { Client, ClientList, Differences, Documented, Json } from "./compare.js";

/** The method of each operation id and the targets of its arguments. */
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

/**
 * Operations that the client does not call: for load balancers and readers, a route's second path,
 * and sessions, which have their own client.
 */
type Others = "docsGet" | "healthz" | "openapiGet" | "sessionTokensCreateUnversioned" | Conversation | `project${Capitalize<Conversation>}`;

type Conversation =
  | "messagesCreate"
  | "messagesList"
  | "sessionStreamGet"
  | "sessionsCancel"
  | "sessionsCreate"
  | "sessionsDelete"
  | "sessionsGet"
  | "sessionsList";

/**
 * `mint` without its aliases. The client omits `user_id` for no user; the API also accepts `null`.
 */
type Mint = (
  slug: string,
  params: Omit<SessionTokenParams, "userId" | "ttlSeconds" | "user_id"> & OrNull<Pick<SessionTokenParams, "user_id">>,
  options?: Parameters<Karta["sessionTokens"]["mint"]>[2],
) => ReturnType<Karta["sessionTokens"]["mint"]>;

type OrNull<T> = { [Field in keyof T]: null extends T[Field] ? never : T[Field] | null };

/**
 * The response has `period` in each item and beside the items. The client returns only the items.
 */
interface UsageKeys extends Omit<ClientList<Karta["usage"]["keys"], ["query"], "keys">, "answer"> {
  answer: ClientList<Karta["usage"]["keys"], ["query"], "keys">["answer"] & Pick<Usage, "period">;
}

export type ClientSide = { [Id in keyof Calls]: Json<Calls[Id]> };
type DocumentSide = { [Id in keyof operations]: Json<Documented<operations[Id]>> };

/**
 * Operations without a line, lines without an operation, and differences between a line and its
 * operation.
 */
export type Disagreements =
  | Exclude<keyof operations, keyof Calls | Others>
  | Exclude<keyof Calls | Others, keyof operations>
  | { [Id in keyof Calls & keyof operations]: Differences<ClientSide[Id], DocumentSide[Id], Id> }[keyof Calls & keyof operations];

export const none: [Disagreements] extends [never] ? true : Disagreements = true;
