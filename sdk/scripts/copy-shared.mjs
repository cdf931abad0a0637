// Copies the test code that both clients use from sdk/shared into the package in the current
// folder, because TypeScript compiles only files of that folder. Git ignores the copy: edit
// sdk/shared.
import { cpSync, rmSync } from "node:fs";
import { fileURLToPath } from "node:url";

rmSync("test/shared", { recursive: true, force: true });
cpSync(fileURLToPath(new URL("../shared/test", import.meta.url)), "test/shared", { recursive: true });
