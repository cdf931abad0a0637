import { Karta, type KartaOptions } from "@karta/sdk";

export { failure, json } from "./shared/calls.js";

export const API_KEY = "kt_live_0123456789abcdefghijABCDEFGHIJ01";

/** A request that a scripted server received. */
export interface Sent {
  method: string;
  url: string;
  headers: Headers;
  body: unknown;
  init: RequestInit;
}

type Scripted = Response | Error | ((sent: Sent) => Response | Promise<Response>);

/**
 * Returns a client whose requests get the responses of `script` in order; the last response
 * repeats. Waits are recorded and skipped.
 */
export function scripted(script: Scripted[], options: Partial<KartaOptions> = {}) {
  const sent: Sent[] = [];
  const waits: number[] = [];
  const send = async (url: string | URL | Request, init: RequestInit = {}): Promise<Response> => {
    const body = init.body === undefined ? undefined : (JSON.parse(String(init.body)) as unknown);
    const request = { method: String(init.method), url: String(url), headers: new Headers(init.headers), body, init };
    sent.push(request);
    const next = script[Math.min(sent.length, script.length) - 1];
    if (next instanceof Error) throw next;
    if (next === undefined) throw new Error("the script is empty");
    return next instanceof Response ? next.clone() : next(request);
  };
  const karta = new Karta({
    apiKey: API_KEY,
    baseUrl: "https://karta.test",
    fetch: send,
    random: () => 0.5,
    sleep: async (ms) => void waits.push(ms),
    ...options,
  });
  return { karta, sent, waits };
}
