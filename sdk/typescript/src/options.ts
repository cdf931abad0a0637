import { KartaArgumentError } from "./errors.js";
import { knownOnly } from "./shared/arguments.js";
import { CLIENT_OPTIONS, clientSettings, functionOf, type ClientOptions, type ClientSettings } from "./shared/options.js";
import { isOnClient } from "./shared/platform.js";

/** Options of a client. Unknown names are rejected. */
export interface KartaOptions extends ClientOptions {
  /** An API key, `kt_live_…`. A session token works for `projects.whoami` only. */
  apiKey: string;
  /**
   * Allows an API key in a browser. Anyone who can open the page can then read the key and control
   * the organization.
   */
  dangerouslyAllowBrowser?: boolean | undefined;
  /** Returns milliseconds since 1970; for tests. */
  now?: (() => number) | undefined;
}

/** Validated options with defaults. */
export interface Settings extends ClientSettings {
  apiKey: string;
  now: () => number;
}

const NAMES = ["apiKey", ...CLIENT_OPTIONS, "now", "dangerouslyAllowBrowser"] as const satisfies readonly (keyof KartaOptions)[];

/** Validates `options` and adds defaults. Throws KartaArgumentError. */
export function settingsOf(options: KartaOptions): Settings {
  const given = knownOnly<KartaOptions>(options, "options", NAMES);
  return {
    apiKey: apiKeyOf(given.apiKey, given.dangerouslyAllowBrowser === true),
    ...clientSettings(given),
    now: functionOf(given.now, "now") ?? (() => Date.now()),
  };
}

/** Returns a valid key. Messages never repeat the value, because it may be another secret. */
function apiKeyOf(value: unknown, browserAllowed: boolean): string {
  if (value === undefined || value === null || value === "") {
    throw new KartaArgumentError("apiKey", "is required: new Karta({ apiKey: process.env.KARTA_API_KEY })");
  }
  if (typeof value !== "string") throw new KartaArgumentError("apiKey", "must be a string: pass an API key, which starts with kt_live_");
  if (value !== value.trim()) throw new KartaArgumentError("apiKey", "must not start or end with whitespace: trim it");
  if (/^[\w-]+\.[\w-]+\.[\w-]+$/.test(value)) return value;
  if (!/^kt_live_[0-9A-Za-z]+$/.test(value)) {
    throw new KartaArgumentError("apiKey", "must be an API key: kt_live_ and then only letters and digits");
  }
  if (isOnClient() && !browserAllowed) {
    throw new KartaArgumentError(
      "apiKey",
      "must not be used in a browser or an app, because anyone who finds it controls the organization. Call Karta from your backend, and give " +
        "the browser a session token (sessionTokens.mint). If only you can open this page, pass dangerouslyAllowBrowser: true",
    );
  }
  return value;
}
