// Compares the parameters and results of both clients' methods with the operations of openapi.json.
// This file and compare.ts list the intended differences.
import type { KartaSessions, SessionTokenOptions } from "../sessions/dist/esm/index.js";
import type { Karta, SessionTokenParams, Usage } from "../typescript/dist/esm/index.js";
import type { operations } from "./build/openapi.js";
import type { Client, ClientEvents, ClientList, Differences, Documented, Json } from "./compare.js";

type Calls = ManagementCalls & SessionCalls & InProject<SessionCalls>;

/** The method of `Karta` of each operation id and the targets of its arguments. */
interface ManagementCalls {
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

/** The method of `KartaSessions` of each operation id and the targets of its arguments. */
interface SessionCalls {
  messagesCreate: MessagesCreate;
  messagesList: ClientList<KartaSessions["messages"], ["path.id", "query"], "messages">;
  sessionStreamGet: Omit<Client<KartaSessions["follow"], ["path.id", "query"]>, "answer" | "events"> & ClientEvents<KartaSessions["follow"]>;
  sessionsCancel: Client<KartaSessions["cancel"], ["path.id", "body"]>;
  sessionsCreate: SessionsCreate;
  sessionsDelete: Client<KartaSessions["delete"], ["path.id"]>;
  sessionsGet: Client<KartaSessions["get"], ["path.id"]>;
  sessionsList: ClientList<SessionsList, ["query"], "sessions">;
}

/** The same calls below a project, which is an option of the client. */
type InProject<C extends { [Id in keyof C]: { path: object } }> = {
  [Id in keyof C & string as `project${Capitalize<Id>}`]: Omit<C[Id], "path"> & { path: C[Id]["path"] & { ref: SessionTokenOptions["project"] } };
};

/** Operations that no client calls: for load balancers and readers, and a route's second path. */
type Others = "docsGet" | "healthz" | "openapiGet" | "sessionTokensCreateUnversioned";

/** `send`, and `stream` for the events. The client has two methods instead of the field `stream`. */
interface MessagesCreate extends Omit<Client<KartaSessions["send"], ["path.id", "body"]>, "body" | "events"> {
  body: TurnFields<Parameters<KartaSessions["send"]>[1]> & { stream?: boolean | null };
  events: ClientEvents<KartaSessions["stream"]>["events"];
}

/** A turn's fields without aliases. */
type TurnFields<T extends { maxTokens?: unknown }> = Omit<T, "maxTokens">;

/** `create`, and `resume` for `session_id`. */
interface SessionsCreate extends Omit<Client<KartaSessions["create"], ["body"]>, "body"> {
  body: Exclude<Parameters<KartaSessions["create"]>[0], undefined> & { session_id?: Parameters<KartaSessions["resume"]>[0] | null };
}

/** `list` without its alias. */
type SessionsList = (
  params?: Omit<Exclude<Parameters<KartaSessions["list"]>[0], undefined>, "userId">,
  options?: Parameters<KartaSessions["list"]>[1],
) => ReturnType<KartaSessions["list"]>;

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
export type DocumentSide = { [Id in keyof operations]: Json<Documented<operations[Id]>> };

/**
 * Operations without a line, lines without an operation, and differences between a line and its
 * operation.
 */
export type Disagreements =
  | Exclude<keyof operations, keyof Calls | Others>
  | Exclude<keyof Calls | Others, keyof operations>
  | { [Id in keyof Calls & keyof operations]: Differences<ClientSide[Id], DocumentSide[Id], Id> }[keyof Calls & keyof operations];

export const none: [Disagreements] extends [never] ? true : Disagreements = true;
