// Runs the blocks of one page in a shell, as a reader who pastes them.
import { randomBytes } from "node:crypto";
import { mkdtempSync, readFileSync, readdirSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { execFileSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { join } from "node:path";
import { blocks } from "./page.mjs";
import { Printed, show } from "./printed.mjs";
import { Shell } from "./shell.mjs";

const root = fileURLToPath(new URL("../..", import.meta.url));

const PROGRAMS = ["ts", "js", "python", "html"];
const CHECKS = { json: "checkJson", text: "checkText", http: "checkHttp", sse: "checkEvents" };

/** Creates a folder that looks like the clone. Only builds write to the real clone. */
export function clone() {
  const folder = mkdtempSync(join(tmpdir(), "karta-docs-"));
  for (const name of readdirSync(root)) {
    if (!["target", ".karta", ".git"].includes(name)) symlinkSync(join(root, name), join(folder, name));
  }
  return folder;
}

function environment() {
  const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("KARTA")));
  // jose needs WebCrypto as a global, which Node.js has from version 20.
  if (Number(process.versions.node.split(".")[0]) < 20) env.NODE_OPTIONS = "--experimental-global-webcrypto";
  return env;
}

/** Runs a page's script as a browser does, and returns the text of its `<pre>`. */
async function browse(html) {
  const [, script] = html.match(/<script type="module">\n(.*?)<\/script>/s);
  const pre = { textContent: "" };
  globalThis.document = { querySelector: (selector) => (selector === "pre" ? pre : null) };
  await import(`data:text/javascript,${encodeURIComponent(script)}`);
  return pre.textContent;
}

/** Type-checks a TypeScript program in strict mode with the installed client's types. */
function typeCheck(file, cwd) {
  const sdk = join(root, "sdk/typescript");
  writeFileSync(join(cwd, "checked.mts"), readFileSync(join(cwd, file)));
  const options = ["--strict", "--noEmit", "--target", "es2022", "--module", "nodenext", "--typeRoots", join(sdk, "node_modules/@types"), "--types", "node"];
  try {
    execFileSync(process.execPath, [join(sdk, "node_modules/typescript/bin/tsc"), ...options, "checked.mts"], { cwd, encoding: "utf8" });
  } catch (error) {
    throw new Error(`does not type-check: ${error.stdout}`);
  }
}

/**
 * Runs a page's blocks in `folder` with a runner that printed `start`. `replacements` lists the
 * blocks that are not run by their text, and the commands that are run instead, if any. Returns the
 * number of blocks run, answers compared and blocks replaced. Throws with the page's line at the
 * first difference.
 */
export async function paste(page, markdown, { start, folder, replacements = {} }) {
  const shown = blocks(markdown);
  const printed = new Printed(start.base_url);
  printed.set("kt_live_…", start.api_key);
  // A key that no provider knows. No page sends a message after it stores the key.
  printed.set("sk-ant-…", `sk-ant-api03-${randomBytes(48).toString("hex")}`);
  const shell = new Shell(folder, environment());
  const count = { run: 0, compared: 0, replaced: 0 };
  const written = new Map();
  let cwd = folder;
  let answer;
  let block;
  try {
    for (const [n, current] of shown.entries()) {
      block = current;
      const { language, file, text, prose } = block;
      const expected = CHECKS[shown[n + 1]?.language];
      if (language === "sh") {
        for (const [name, program] of written) if (text.includes(name)) program.started = true;
        if (text in replacements) {
          count.replaced += 1;
          if (replacements[text].instead) await shell.run(replacements[text].instead);
          continue;
        }
        for (const [name, program] of written) if (text.includes(name) && program.language === "ts") typeCheck(name, cwd);
        answer = await shell.run(printed.fill(text));
        cwd = (await shell.run("pwd")).trim();
        count.run += 1;
        if (!expected && text.includes("curl") && answer !== "") throw new Error(`has no printed answer, but the answer was ${show(answer)}`);
      } else if (PROGRAMS.includes(language)) {
        if (!file) throw new Error(`needs a file name after its language`);
        if (!prose.includes(`\`${file}\``)) throw new Error(`the prose before it does not say to save it as ${file}`);
        const program = printed.fill(text);
        writeFileSync(join(cwd, file), program, { mode: 0o600 });
        written.set(file, { language, started: language === "html", line: block.line });
        if (language === "html") answer = await browse(program);
        count.run += 1;
      } else if (language in CHECKS) {
        if (answer === undefined) throw new Error("prints an answer, but nothing was run before it");
        printed[CHECKS[language]](text, answer.replaceAll(start.base_url, "http://127.0.0.1:8787"));
        answer = undefined;
        count.compared += 1;
      } else throw new Error(`cannot be run: unsupported language ${language || "(none)"}`);
    }
    for (const [file, { started, line }] of written) {
      block = { line, language: file };
      if (!started) throw new Error("is saved but never started");
    }
  } catch (error) {
    throw new Error(`${page}:${block.line}: the ${block.language} block ${show(error.message)}`);
  } finally {
    await shell.close();
  }
  return count;
}

