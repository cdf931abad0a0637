import { spawn } from "node:child_process";
import { createWriteStream } from "node:fs";
import { createInterface } from "node:readline";

/**
 * Starts a runner. Returns its first line as `start`, and `stop`. Its secrets come through a pipe;
 * this check never writes them to a file.
 */
export async function startRunner(args, log, env = {}) {
  const karta = process.env.KARTA_BIN;
  if (!karta) throw new Error("KARTA_BIN must name the runner");
  const child = spawn(karta, ["--json", "--port", "0", "--log", "warn", ...args], {
    env: { ...process.env, KARTA_BCRYPT_COST: "4", ...env },
    stdio: ["ignore", "pipe", "pipe"],
  });
  child.stderr.pipe(createWriteStream(log));
  const ended = new Promise((resolve, reject) => {
    child.once("error", reject);
    child.once("exit", (code) => resolve(code));
  });
  const failed = ended.then((code) => Promise.reject(new Error(`the runner ended with ${code}: see ${log}`)));
  const line = new Promise((resolve) => createInterface(child.stdout).once("line", resolve));
  const start = JSON.parse(await Promise.race([line, failed]));
  failed.catch(() => {});
  return {
    start,
    async stop() {
      child.kill("SIGTERM");
      const code = await ended;
      if (code !== 0) throw new Error(`the runner did not stop cleanly: ${code}, see ${log}`);
    },
  };
}
