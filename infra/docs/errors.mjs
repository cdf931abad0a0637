// docs/errors.md against the truth: its codes are those of the code base, its bodies what a runner answers or, where none can be made to, what the code
// or the template says, and the client throws what the page says.
import { readFileSync, readdirSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { join } from "node:path";
import { checkBodies, checkClient, checkComplete, gatewayAnswers, printedBodies } from "./error-page.mjs";
import { provoke } from "./provoke.mjs";

const root = fileURLToPath(new URL("../..", import.meta.url));
const read = (path) => readFileSync(join(root, path), "utf8");

/** The code that answers requests, without its tests. */
function rustSource() {
  const folders = ["shared/src", ...readdirSync(join(root, "functions")).map((name) => `functions/${name}/src`)];
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
await checkClient(page, Karta, read("sdk/typescript/src/errors.ts"));

const answered = await provoke(join(root, "target/docs/errors.log"));
checkBodies(page, answered, truth);
console.log(`docs: docs/errors.md: ${printedBodies(page).length} bodies, ${answered.length} of them answered, the others found in code and template`);
