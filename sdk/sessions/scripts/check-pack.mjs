// Installs the output of `npm pack` offline into a new project, type-checks it and runs it as ESM
// and as CommonJS, with the current TypeScript and with the lowest version that the README
// promises.
import { execFileSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
const compilers = ["typescript", "typescript-5.0"].map((name) => join(root, "node_modules", name, "bin/tsc"));
const project = mkdtempSync(join(tmpdir(), "karta-sessions-"));
const run = (command, args, cwd = project) => execFileSync(command, args, { cwd, encoding: "utf8", stdio: ["ignore", "pipe", "inherit"] });

/** A program whose server is a function. It fails if an answer is not as expected. */
const SAMPLE = `
const frames = [{ type: "text", data: { part: { id: "p", type: "text", text: "Hi" } } }, { type: "done", data: { message_id: "msg_1", usage: {}, stop_reason: "end_turn" } }]
  .map((each, at) => \`data: \${JSON.stringify({ ...each, session_id: "sess_1", turn_id: "turn_1", seq: at + 1 })}\\n\\n\`);
const answer = async () => new Response(frames.join(""), { headers: { "content-type": "text/event-stream" } });
export const sessions = new KartaSessions({ apiKey: "kt_live_0123456789", baseUrl: "https://karta.test/v1/", fetch: answer });
export async function sample(signal: AbortSignal): Promise<string> {
  const stream = sessions.stream("sess_1", { text: "Hello!" }, { signal });
  let text = "";
  for await (const event of stream) if (event.type === "text") text += event.data.part.text;
  try {
    return text === (await stream.text()) ? text : "different";
  } catch (error) {
    if (error instanceof KartaBudgetError) return String(error.cap);
    throw error;
  }
}
export async function lists(): Promise<string[]> {
  // @ts-expect-error: ids are strings
  await sessions.get(7);
  return [...(await sessions.list()).map((session) => session.id), ...(await sessions.messages("sess_1", { limit: 3 }).page()).items.map((message) => message.text)];
}
void sample(new AbortController().signal).then((text) => {
  if (text !== "Hi") throw new Error(text);
});
`;
const IMPORT = `import { KartaBudgetError, KartaSessions } from "@karta/sessions";`;
const REQUIRE = `import sdk = require("@karta/sessions");\nimport KartaBudgetError = sdk.KartaBudgetError;\nimport KartaSessions = sdk.KartaSessions;`;

/** Throws if a source map in `folder` names a source that is not in the package. */
function checkMaps(folder) {
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) checkMaps(path);
    else if (path.endsWith(".map")) {
      for (const source of JSON.parse(readFileSync(path, "utf8")).sources) {
        if (!existsSync(resolve(dirname(path), source))) throw new Error(`${path}: ${source} is not in the package`);
      }
    }
  }
}

try {
  const tarball = JSON.parse(run("npm", ["pack", "--json", "--ignore-scripts", "--pack-destination", project], root))[0];
  writeFileSync(join(project, "package.json"), JSON.stringify({ name: "fresh", private: true }));
  run("npm", ["install", "--offline", "--ignore-scripts", "--no-audit", "--no-fund", join(project, tarball.filename)]);
  const installed = readdirSync(join(project, "node_modules")).filter((name) => !name.startsWith("."));
  if (installed.join() !== "@karta") throw new Error(`the package installs ${installed}, expected only @karta`);
  checkMaps(join(project, "node_modules/@karta/sessions/dist"));

  writeFileSync(join(project, "esm.mts"), IMPORT + SAMPLE);
  writeFileSync(join(project, "cjs.cts"), IMPORT + SAMPLE);
  writeFileSync(join(project, "required.cts"), REQUIRE + SAMPLE);
  writeFileSync(join(project, "bundled.ts"), IMPORT + SAMPLE);
  const strict = ["--strict", "--target", "es2022", "--lib", "es2022,dom"];
  const versions = [];
  for (const tsc of compilers) {
    versions.push(run(process.execPath, [tsc, "--version"]).trim().replace("Version ", ""));
    for (const mode of ["node16", "nodenext"]) {
      run(process.execPath, [tsc, ...strict, "--module", mode, "--moduleResolution", mode, "--outDir", mode, "esm.mts", "cjs.cts", "required.cts"]);
      for (const file of ["esm.mjs", "cjs.cjs", "required.cjs"]) run(process.execPath, [join(mode, file)]);
    }
    run(process.execPath, [tsc, ...strict, "--noEmit", "--module", "esnext", "--moduleResolution", "bundler", "bundled.ts"]);
  }
  const promised = readFileSync(join(root, "README.md"), "utf8").match(/TypeScript (\d+\.\d+) or later/)?.[1];
  if (!versions[1].startsWith(`${promised}.`)) throw new Error(`the README promises TypeScript ${promised}, but ${versions[1]} was tested`);
  console.log(`check-pack: ${tarball.filename}, ${tarball.entryCount} files, ${tarball.size} bytes: installs, type-checks and runs as ESM and CommonJS with TypeScript ${versions.join(" and ")}`);
} finally {
  rmSync(project, { recursive: true });
}
