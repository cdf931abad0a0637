import { knownOnly, rejectUndefined } from "./shared/arguments.js";
import { KartaArgumentError } from "./shared/errors.js";
import { CLIENT_OPTIONS, clientSettings, integerOf, timeoutOf, type ClientOptions, type ClientSettings } from "./shared/options.js";
import { isOnClient } from "./shared/platform.js";

/** Options of every client. Unknown names are rejected. */
export interface CommonOptions extends ClientOptions {
  /** Timeout of each attempt in milliseconds; for streams, until they start. Default: 30,000. */
  timeout?: number | undefined;
  /** Timeout of each attempt of `send` in milliseconds. Default: 300,000. */
  turnTimeout?: number | undefined;
  /**
   * Maximum silence of a stream in milliseconds. The server sends a comment after 15 seconds of
   * silence. Default: 45,000.
   */
  idleTimeout?: number | undefined;
  /** Maximum consecutive attempts to resume a stream without a new event, 0 to 100. Default: 10. */
  maxReconnects?: number | undefined;
}

/** Options of a client with an API key. */
export interface ApiKeyOptions extends CommonOptions {
  /** An API key, `kt_live_…`. */
  apiKey: string;
  /**
   * Slug of the project whose sessions to use. Default: all sessions of the organization. `undefined`
   * is rejected.
   */
  project?: string;
  /**
   * Allows the API key in a browser. Anyone who can open the page can then read the key and control
   * the organization.
   */
  dangerouslyAllowBrowser?: boolean | undefined;
  sessionToken?: undefined;
}

/** Returns a new session token, from your backend. */
export type TokenProvider = () => string | Promise<string>;

/** Options of a client with a session token. */
export interface SessionTokenOptions extends CommonOptions {
  /** Slug of the token's project. */
  project: string;
  /**
   * A session token, or a function that fetches one. The function is called before the first
   * request, and again when the server rejects the token.
   */
  sessionToken: string | TokenProvider;
  apiKey?: undefined;
  dangerouslyAllowBrowser?: undefined;
}

export type KartaSessionsOptions = ApiKeyOptions | SessionTokenOptions;

/** Validated options with defaults. */
export interface Settings extends ClientSettings {
  /** Path of the sessions, in the flat family or in a project's. */
  path: string;
  token: string | TokenProvider;
  turnTimeout: number;
  idleTimeout: number;
  maxReconnects: number;
}

const NAMES = [
  "apiKey",
  "project",
  "sessionToken",
  ...CLIENT_OPTIONS,
  "turnTimeout",
  "idleTimeout",
  "maxReconnects",
  "dangerouslyAllowBrowser",
] as const satisfies readonly (keyof KartaSessionsOptions)[];

/** Validates `options` and adds defaults. Throws KartaArgumentError. */
export function settingsOf(options: KartaSessionsOptions): Settings {
  const given = knownOnly<ApiKeyOptions | SessionTokenOptions>(options, "options", NAMES);
  const { apiKey, project, sessionToken } = given;
  if (apiKey !== undefined && sessionToken !== undefined) throw new KartaArgumentError("apiKey", "and sessionToken exclude each other: pass one");
  const isToken = sessionToken !== undefined;
  if (isToken && project === undefined) throw new KartaArgumentError("project", "is required with a session token: pass the project's slug");
  // An empty variable must not reach the sessions of all projects.
  rejectUndefined(given, "project");
  return {
    ...clientSettings(given),
    path: project === undefined ? "/v1/sessions" : `/v1/projects/${slugOf(project)}/sessions`,
    token: isToken ? tokenOf(sessionToken) : apiKeyOf(apiKey, given.dangerouslyAllowBrowser === true),
    turnTimeout: timeoutOf(given.turnTimeout ?? 300_000, "turnTimeout"),
    idleTimeout: timeoutOf(given.idleTimeout ?? 45_000, "idleTimeout"),
    maxReconnects: integerOf(given.maxReconnects ?? 10, "maxReconnects", 0, 100),
  };
}

/** Returns a valid key. Messages never repeat the value, because it may be another secret. */
function apiKeyOf(value: unknown, browserAllowed: boolean): string {
  if (value === undefined || value === null || value === "") {
    throw new KartaArgumentError("apiKey", "or sessionToken is required: new KartaSessions({ apiKey: process.env.KARTA_API_KEY })");
  }
  if (typeof value !== "string" || !/^kt_live_[0-9A-Za-z]+$/.test(value)) {
    throw new KartaArgumentError("apiKey", "must be kt_live_ followed by letters and digits. Pass a session token as sessionToken");
  }
  if (isOnClient() && !browserAllowed) {
    throw new KartaArgumentError(
      "apiKey",
      "must not be used in a browser or an app, because anyone who finds it controls the organization. Use a session token " +
        "from your backend. If only you can open this page, pass dangerouslyAllowBrowser: true",
    );
  }
  return value;
}

function tokenOf(value: unknown): string | TokenProvider {
  return typeof value === "function" ? (value as TokenProvider) : sessionTokenOf(value);
}

/** Returns a valid session token. Messages never repeat the value. */
export function sessionTokenOf(value: unknown): string {
  if (typeof value === "string" && /^[\w-]+\.[\w-]+\.[\w-]+$/.test(value)) return value;
  throw new KartaArgumentError("sessionToken", "must be a session token (three parts with dots between), or a function that returns one");
}

function slugOf(value: unknown): string {
  if (typeof value === "string" && /^[a-z0-9-]{1,63}$/.test(value)) return value;
  throw new KartaArgumentError("project", "must be a project's slug: 1 to 63 characters of a-z, 0-9 and -");
}
