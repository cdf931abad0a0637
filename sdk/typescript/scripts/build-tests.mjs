// Builds the tests, the documentation's samples (test/seeds) and the README's code blocks into
// build/, and type-checks them. Each sample and each block becomes a separate program.
import { execFileSync } from "node:child_process";
import { mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

process.chdir(fileURLToPath(new URL("..", import.meta.url)));
rmSync("build", { recursive: true, force: true });

const MAKE_CLIENT = `import { Karta } from "@karta/sdk";\nconst karta = new Karta({ apiKey: process.env.KARTA_API_KEY! });\n`;

/** Returns a block with the statements that it needs before it. */
function program(block) {
  const before = [];
  if (!block.includes("new Karta(")) before.push(MAKE_CLIENT);
  if (block.includes("modelKeys.revoke(id)")) {
    before.push(`const { id } = (await karta.modelKeys.create("openai", process.env.OPENAI_API_KEY!)).model_key;\n`);
  }
  // One sample has `[...]` as a placeholder for the reader's list.
  return `${before.join("")}${block.replace("[...]", `["*"]`)}\nexport {};\n`;
}

mkdirSync("build/seeds", { recursive: true });
mkdirSync("build/readme", { recursive: true });
for (const name of readdirSync("test/seeds")) writeFileSync(`build/seeds/${name}`, program(readFileSync(`test/seeds/${name}`, "utf8")));
const readme = readFileSync("README.md", "utf8").matchAll(/^```ts\n(.*?)^```$/gms);
[...readme].forEach(([, block], at) => writeFileSync(`build/readme/${at + 1}.ts`, program(block)));

writeFileSync(
  "build/tsconfig.json",
  JSON.stringify({
    extends: "../tsconfig.test.json",
    compilerOptions: { rootDir: ".", outDir: ".", noUnusedLocals: false },
    include: ["seeds", "readme"],
    exclude: [],
  }),
);
for (const project of ["tsconfig.test.json", "build/tsconfig.json"]) {
  execFileSync(process.execPath, ["node_modules/typescript/bin/tsc", "-p", project], { stdio: "inherit" });
}
