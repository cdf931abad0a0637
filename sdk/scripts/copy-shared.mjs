// Copies the code that both clients use from sdk/shared into the package in the current folder,
// because TypeScript compiles, and a package contains, only files of its folder. Git ignores the
// copies: edit sdk/shared.
import { cpSync, rmSync } from "node:fs";
import { fileURLToPath } from "node:url";

for (const folder of ["src", "test"]) {
  rmSync(`${folder}/shared`, { recursive: true, force: true });
  cpSync(fileURLToPath(new URL(`../shared/${folder}`, import.meta.url)), `${folder}/shared`, { recursive: true });
}
