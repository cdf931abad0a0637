// Builds the tests, the documentation's samples (test/seeds) and the README's code blocks of the
// package in the current folder into build/, and type-checks them. Each sample and each block becomes
// a separate program, with the statements that the package's scripts/program.mjs adds.
import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { resolve } from "node:path";
import "./copy-shared.mjs";

const { program } = await import(resolve("scripts/program.mjs"));

rmSync("build", { recursive: true, force: true });
mkdirSync("build/seeds", { recursive: true });
mkdirSync("build/readme", { recursive: true });
const seeds = existsSync("test/seeds") ? readdirSync("test/seeds") : [];
for (const name of seeds) writeFileSync(`build/seeds/${name}`, program(readFileSync(`test/seeds/${name}`, "utf8")));
const blocks = [...readFileSync("README.md", "utf8").matchAll(/^```ts\n(.*?)^```$/gms)];
if (blocks.length === 0) throw new Error("README.md has no code blocks");
blocks.forEach(([, block], at) => writeFileSync(`build/readme/${at + 1}.ts`, program(block)));

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
