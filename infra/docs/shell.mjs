import { spawn } from "node:child_process";
import { randomUUID } from "node:crypto";

/** Reads blocks from a pipe and runs them in order. Exports and the working directory are kept. */
const LOOP = `
set -o pipefail
while IFS= read -r -d '' karta_docs_block <&3; do
  karta_docs_failed=0 karta_docs_status=1
  trap 'echo "failed with $?: $BASH_COMMAND" >&2; karta_docs_failed=1' ERR
  eval "$karta_docs_block
  karta_docs_status=\\$?; trap - ERR" </dev/null
  # The trap ignores a failure before an &&.
  if ((karta_docs_status && !karta_docs_failed)); then echo "ended with $karta_docs_status" >&2; karta_docs_failed=1; fi
  echo "$KARTA_DOCS_MARK $karta_docs_failed"
  echo "$KARTA_DOCS_MARK $karta_docs_failed" >&2
done
`;

/** A bash process that runs the blocks of one page in order. */
export class Shell {
  #child;
  #mark = randomUUID();
  #ended;
  #streams;

  constructor(cwd, env) {
    this.#child = spawn("bash", ["-c", LOOP], {
      cwd,
      // A new process group, so that close() also ends its child processes.
      detached: true,
      env: { ...env, KARTA_DOCS_MARK: this.#mark },
      stdio: ["ignore", "pipe", "pipe", "pipe"],
    });
    this.#ended = new Promise((resolve) => this.#child.once("exit", resolve));
    this.#streams = [this.#child.stdout, this.#child.stderr].map((stream) => new Answers(stream.setEncoding("utf8"), this.#mark));
  }

  /**
   * Runs a block. Resolves to its output; rejects if a command fails or the block exceeds
   * `seconds`.
   */
  async run(block, seconds = 300) {
    this.#child.stdio[3].write(`${block}\0`);
    let timer;
    const late = new Promise((_, reject) => {
      timer = setTimeout(() => reject(new Error(`did not end within ${seconds} s`)), seconds * 1000);
    });
    const died = this.#ended.then((code) => Promise.reject(new Error(`ended the shell with ${code}`)));
    died.catch(() => {});
    try {
      const [out, err] = await Promise.race([Promise.all(this.#streams.map((stream) => stream.next())), late, died]);
      if (out.failed) throw new Error(`${err.text.trim()}`);
      return out.text;
    } finally {
      clearTimeout(timer);
    }
  }

  async close() {
    try {
      process.kill(-this.#child.pid, "SIGKILL");
    } catch (error) {
      if (error.code !== "ESRCH") throw error;
    }
    await this.#ended;
  }
}

/** The text of a stream, split at lines with the mark. */
class Answers {
  #text = "";
  #wake = () => {};

  constructor(stream, mark) {
    this.mark = mark;
    stream.on("data", (text) => {
      this.#text += text;
      this.#wake();
    });
  }

  async next() {
    const end = new RegExp(`${this.mark} ([01])\n`);
    for (;;) {
      const found = this.#text.match(end);
      if (found) {
        const text = this.#text.slice(0, found.index);
        this.#text = this.#text.slice(found.index + found[0].length);
        return { text, failed: found[1] === "1" };
      }
      await new Promise((resolve) => {
        this.#wake = resolve;
      });
    }
  }
}
