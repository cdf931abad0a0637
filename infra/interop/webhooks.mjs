// Runs the TypeScript samples of docs/webhooks.md on deliveries that Karta signed: with node:crypto
// only, with the stripe library and with the standardwebhooks library. Reads the deliveries from
// stdin; throws at the first failed check.
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import ts from "typescript";

const cases = JSON.parse(readFileSync(0, "utf8"));
const page = readFileSync(new URL("../../docs/webhooks.md", import.meta.url), "utf8");
// Inside node_modules, so that the samples find the libraries.
const folder = new URL("node_modules/.printed/", import.meta.url);
mkdirSync(folder, { recursive: true });

async function printed(title) {
  const [, block] = page.match(new RegExp(`^### ${title}\n+\`\`\`ts\n(.*?)^\`\`\`$`, "ms"));
  const module = { module: ts.ModuleKind.ESNext, target: ts.ScriptTarget.ES2022 };
  const file = new URL(`${title.replaceAll(" ", "-")}.mjs`, folder);
  writeFileSync(file, ts.transpileModule(block, { compilerOptions: module }).outputText);
  return (await import(file)).verify;
}

function isAccepted(verify, { body, headers, secret }, input) {
  try {
    verify(Buffer.from(body), input(headers), secret);
    return true;
  } catch {
    return false;
  }
}

const karta = (headers) => headers["karta-signature"];
const all = (headers) => headers;
const version = (of) => JSON.parse(readFileSync(new URL(`node_modules/${of}/package.json`, import.meta.url), "utf8")).version;
let checks = 0;
for (const [title, input, beyond] of [
  ["TypeScript", karta, []],
  // The stripe library rejects old deliveries, but not those from the future.
  ["TypeScript with the stripe library", karta, ["a delivery in ten minutes"]],
  ["TypeScript with the standardwebhooks library", all, []],
]) {
  const verify = await printed(title);
  for (const delivery of cases) {
    const expected = delivery.is_genuine || beyond.includes(delivery.what);
    if (isAccepted(verify, delivery, input) !== expected) {
      throw new Error(`${title}: ${delivery.what} is ${expected ? "refused" : "accepted"}`);
    }
    checks += 1;
  }
}
console.log(
  `webhooks: stripe ${version("stripe")}, standardwebhooks ${version("standardwebhooks")}, Node.js ${process.versions.node}: ${checks} checks`,
);
