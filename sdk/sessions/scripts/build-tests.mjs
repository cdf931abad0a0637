// Builds the tests and the README's code blocks into build/, and type-checks them. Each block
// becomes a separate program.
import { execFileSync } from "node:child_process";
import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

process.chdir(fileURLToPath(new URL("..", import.meta.url)));
rmSync("build", { recursive: true, force: true });

const MAKE_CLIENT = `import { KartaSessions } from "@karta/sessions";
const sessions = new KartaSessions({ apiKey: process.env.KARTA_API_KEY! });
const session = await sessions.create();
`;

mkdirSync("build/readme", { recursive: true });
const blocks = [...readFileSync("README.md", "utf8").matchAll(/^```ts\n(.*?)^```$/gms)];
if (blocks.length === 0) throw new Error("README.md has no code blocks");
blocks.forEach(([, block], at) => {
  writeFileSync(`build/readme/${at + 1}.ts`, `${block.includes("new KartaSessions(") ? "" : MAKE_CLIENT}${block}\nexport {};\n`);
});

writeFileSync(
  "build/tsconfig.json",
  JSON.stringify({
    extends: "../tsconfig.test.json",
    compilerOptions: { rootDir: ".", outDir: ".", noUnusedLocals: false },
    include: ["readme"],
    exclude: [],
  }),
);
for (const project of ["tsconfig.test.json", "build/tsconfig.json"]) {
  execFileSync(process.execPath, ["node_modules/typescript/bin/tsc", "-p", project], { stdio: "inherit" });
}
