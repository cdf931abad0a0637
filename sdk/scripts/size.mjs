// Fails if the package in the current folder, bundled for browsers, minified and gzipped, exceeds a
// limit: `size.mjs <bytes> [<export>]`. Also fails if the bundle of one export is not much smaller.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { resolve } from "node:path";
import { gzipSync } from "node:zlib";

const { build } = createRequire(resolve("package.json"))("esbuild");
const { name } = JSON.parse(readFileSync("package.json", "utf8"));
const [limit, part] = process.argv.slice(2);

async function bundled(names) {
  const { outputFiles } = await build({
    stdin: { contents: `export ${names} from "${name}"`, resolveDir: process.cwd() },
    bundle: true, minify: true, format: "esm", platform: "browser", target: "es2022", write: false, logLevel: "warning",
  });
  return gzipSync(outputFiles[0].contents, { level: 9 }).length;
}

const whole = await bundled("*");
const one = part && (await bundled(`{ ${part} }`));
console.log(`size: ${whole} bytes minified and gzipped (limit ${limit})${part ? `; only ${part}: ${one}` : ""}`);
if (!(whole < Number(limit))) throw new Error(`the package exceeds ${limit} bytes`);
if (part && one * 2 >= whole) throw new Error("bundlers do not remove unused code");
