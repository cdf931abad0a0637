// Installs the output of `npm pack` of the package in the current folder offline into a new project.
// Type-checks the package's test/pack-sample.ts there and runs it as ESM and as CommonJS, with the
// current TypeScript and with the lowest version that the README promises.
import { execFileSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";

const root = process.cwd();
const { name } = JSON.parse(readFileSync("package.json", "utf8"));
const compilers = ["typescript", "typescript-5.0"].map((compiler) => join(root, "node_modules", compiler, "bin/tsc"));
const project = mkdtempSync(join(tmpdir(), "karta-pack-"));
const run = (command, args, cwd = project) => execFileSync(command, args, { cwd, encoding: "utf8", stdio: ["ignore", "pipe", "inherit"] });

/** A program that uses the package: as a module, and with `require`. */
const SAMPLE = readFileSync(join(root, "test/pack-sample.ts"), "utf8");
const REQUIRING_SAMPLE = SAMPLE.replace(/^import \{ (.*) \} from (".*");$/m, (_, names, from) =>
  [`import sdk = require(${from});`, ...names.split(", ").map((each) => `import ${each} = sdk.${each};`)].join("\n"),
);

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
  const installed = readdirSync(join(project, "node_modules")).filter((each) => !each.startsWith("."));
  if (installed.join() !== "@karta") throw new Error(`the package installs ${installed}, expected only @karta`);
  checkMaps(join(project, "node_modules", name, "dist"));

  writeFileSync(join(project, "esm.mts"), SAMPLE);
  writeFileSync(join(project, "cjs.cts"), SAMPLE);
  writeFileSync(join(project, "required.cts"), REQUIRING_SAMPLE);
  writeFileSync(join(project, "bundled.ts"), SAMPLE);
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
