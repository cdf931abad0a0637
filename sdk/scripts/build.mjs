// Builds dist/esm and dist/cjs of the package in the current folder: JavaScript, types and source
// maps. The package.json in each declares the module type of its files for Node.js and TypeScript.
import { execFileSync } from "node:child_process";
import { rmSync, writeFileSync } from "node:fs";
import "./copy-shared.mjs";

rmSync("dist", { recursive: true, force: true });
for (const [project, type] of [["tsconfig.json", "module"], ["tsconfig.cjs.json", "commonjs"]]) {
  execFileSync(process.execPath, ["node_modules/typescript/bin/tsc", "-p", project], { stdio: "inherit" });
  writeFileSync(`dist/${type === "module" ? "esm" : "cjs"}/package.json`, `${JSON.stringify({ type, sideEffects: false })}\n`);
}
