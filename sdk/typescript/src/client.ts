import { settingsOf, type KartaOptions } from "./options.js";
import { ApiKeys } from "./resources/api-keys.js";
import { AuditEvents } from "./resources/audit-events.js";
import { Billing } from "./resources/billing.js";
import { Budgets } from "./resources/budget.js";
import { Deploys } from "./resources/deploys.js";
import { ModelKeys } from "./resources/model-keys.js";
import { Projects } from "./resources/projects.js";
import { Releases } from "./resources/releases.js";
import { SessionTokens } from "./resources/session-tokens.js";
import { UsageReports } from "./resources/usage.js";
import { WebhookEndpoints } from "./resources/webhook-endpoints.js";
import { whoami, type Principal } from "./resources/whoami.js";
import type { RequestOptions } from "./shared/options.js";
import { Transport } from "./transport.js";

/** A client of the control plane, for the organization of its API key. */
export class Karta {
  readonly apiKeys: ApiKeys;
  readonly modelKeys: ModelKeys;
  readonly webhookEndpoints: WebhookEndpoints;
  readonly usage: UsageReports;
  readonly budget: Budgets;
  readonly billing: Billing;
  readonly projects: Projects;
  readonly deploys: Deploys;
  readonly releases: Releases;
  readonly sessionTokens: SessionTokens;
  readonly auditEvents: AuditEvents;
  readonly #transport: Transport;

  /**
   * Creates a client. Sends nothing.
   *
   * @throws {KartaArgumentError} for an invalid or unknown option.
   */
  constructor(options: KartaOptions) {
    const transport = new Transport(settingsOf(options));
    this.#transport = transport;
    this.apiKeys = new ApiKeys(transport);
    this.modelKeys = new ModelKeys(transport);
    this.webhookEndpoints = new WebhookEndpoints(transport);
    this.usage = new UsageReports(transport);
    this.budget = new Budgets(transport);
    this.billing = new Billing(transport);
    this.projects = new Projects(transport);
    this.deploys = new Deploys(transport);
    this.releases = new Releases(transport);
    this.sessionTokens = new SessionTokens(transport);
    this.auditEvents = new AuditEvents(transport);
  }

  /** Base URL of the control plane, without `/v1`. */
  get baseUrl(): string {
    return this.#transport.baseUrl;
  }

  /**
   * Returns the principal of the client's key: organization, scopes, budget. Any API key.
   *
   * @throws {KartaAuthError} for an invalid key; {KartaForbiddenError} for a session token.
   */
  async whoami(options?: RequestOptions): Promise<Principal> {
    return whoami(this.#transport, options);
  }

  toString(): string {
    return `Karta(${this.baseUrl})`;
  }

  toJSON(): { baseUrl: string } {
    return { baseUrl: this.baseUrl };
  }

  /** The text that `console.log` prints in Node.js. */
  [Symbol.for("nodejs.util.inspect.custom")](): string {
    return this.toString();
  }
}
