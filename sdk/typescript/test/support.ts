import { spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { Karta, type KartaOptions } from "@karta/sdk";

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

export function json(status: number, body: unknown, headers: Record<string, string> = {}): Response {
  return new Response(JSON.stringify(body), { status, headers: { "content-type": "application/json", ...headers } });
}

/** Returns the error that `call` throws. */
export async function failure(call: () => unknown): Promise<unknown> {
  try {
    await call();
  } catch (error) {
    return error;
  }
  throw new Error("the call did not fail");
}

/** The first line of a runner, as JSON. */
export interface Started {
  base_url: string;
  api_key: string;
  service_token: string;
}

/**
 * Starts a runner without persistent data: the binary in `KARTA_BIN`, or the debug build. Its
 * secrets stay in this process.
 */
export async function startRunner(env: Record<string, string> = {}): Promise<Started & { stop: () => Promise<void> }> {
  const binary = process.env.KARTA_BIN ?? fileURLToPath(new URL("../../../../target/debug/karta", import.meta.url));
  const runner = spawn(binary, ["--ephemeral", "--json", "--port", "0"], {
    env: { ...process.env, KARTA_BCRYPT_COST: "4", KARTA_LOG: "warn", ...env },
    stdio: ["ignore", "pipe", "inherit"],
  });
  process.once("exit", () => runner.kill());
  const ended = new Promise<void>((resolve, reject) => {
    runner.once("exit", () => resolve());
    runner.once("error", (cause) => reject(new Error(`${binary} does not start: build it, or set KARTA_BIN`, { cause })));
  });
  const first = new Promise<string>((resolve) => createInterface({ input: runner.stdout }).once("line", resolve));
  const line = await Promise.race([first, ended]);
  if (line === undefined) throw new Error(`${binary} ended before it was ready`);
  const stop = async () => {
    runner.kill("SIGTERM");
    await ended;
  };
  return { ...(JSON.parse(line) as Started), stop };
}
