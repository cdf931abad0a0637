// Checks docs/errors.md: its codes must be those of the code, and its bodies must be responses of a
// runner. Bodies that no request can provoke must be in the code or the template. The client must
// throw the page's classes.
import { readFileSync, readdirSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { join } from "node:path";
import { checkBodies, checkClient, checkComplete, gatewayAnswers, printedBodies } from "./error-page.mjs";
import { provoke } from "./provoke.mjs";

const root = fileURLToPath(new URL("../..", import.meta.url));
const read = (path) => readFileSync(join(root, path), "utf8");

/** Returns the code that serves requests, with the local runner's gateway, without its tests. */
function rustSource() {
  const folders = ["infra/local/src", "shared/src", ...readdirSync(join(root, "functions")).map((name) => `functions/${name}/src`)];
  const files = folders.flatMap((folder) => readdirSync(join(root, folder), { recursive: true }).map((name) => join(folder, name)));
  return files
    .filter((file) => file.endsWith(".rs"))
    .map((file) => read(file).split("#[cfg(test)]\nmod tests")[0])
    .join("\n");
}

const page = read("docs/errors.md");
const truth = { rust: rustSource(), gateway: gatewayAnswers(read("template.yaml")), openapi: JSON.parse(read("openapi.json")) };
checkComplete(page, truth);
const { Karta } = await import(new URL("../../sdk/typescript/dist/esm/index.js", import.meta.url));
await checkClient(page, Karta, read("sdk/shared/src/errors.ts") + read("sdk/typescript/src/errors.ts"));

const answered = await provoke(join(root, "target/docs/errors.log"));
checkBodies(page, answered, truth);
console.log(`docs: docs/errors.md: ${printedBodies(page).length} bodies, ${answered.length} returned by a runner, the others found in code and template`);
