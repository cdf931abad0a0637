// Fails if the package, bundled for browsers, minified and gzipped, exceeds its size limit.
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";

const LIMIT = 9_000;

const { outputFiles } = await build({
  stdin: { contents: `export * from "@karta/sessions"`, resolveDir: fileURLToPath(new URL("..", import.meta.url)) },
  bundle: true, minify: true, format: "esm", platform: "browser", target: "es2022", write: false, logLevel: "warning",
});
const size = gzipSync(outputFiles[0].contents, { level: 9 }).length;
console.log(`size: ${size} bytes minified and gzipped (limit ${LIMIT})`);
if (size >= LIMIT) throw new Error(`the package exceeds ${LIMIT} bytes`);
