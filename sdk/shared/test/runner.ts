import { spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

/** The first line of a runner, as JSON. */
export interface Started {
  base_url: string;
  api_key: string;
  service_token: string;
}

/**
 * Starts a runner without persistent data: the binary in `KARTA_BIN`, or the debug build. Its
 * secrets stay in this process, and it ends with this process at the latest.
 */
export async function startRunner(env: Record<string, string> = {}): Promise<Started & { stop: () => Promise<void> }> {
  const binary = process.env.KARTA_BIN ?? fileURLToPath(new URL("../../../../../target/debug/karta", import.meta.url));
  const runner = spawn(binary, ["--ephemeral", "--json", "--port", "0"], {
    env: { ...process.env, KARTA_BCRYPT_COST: "4", KARTA_LOG: "warn", ...env },
    stdio: ["ignore", "pipe", "inherit"],
  });
  process.once("exit", () => runner.kill());
  // A signal would end this process without the event `exit`.
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.once(signal, () => process.exit(1));
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
