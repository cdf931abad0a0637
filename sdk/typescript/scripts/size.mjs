// Fails if the package, bundled for browsers, minified and gzipped, exceeds its size limit.
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";

const LIMIT = 12_000;

async function bundled(code) {
  const { outputFiles } = await build({
    stdin: { contents: code, resolveDir: fileURLToPath(new URL("..", import.meta.url)) },
    bundle: true, minify: true, format: "esm", platform: "browser", target: "es2022", write: false, logLevel: "warning",
  });
  return gzipSync(outputFiles[0].contents, { level: 9 }).length;
}

const whole = await bundled(`export * from "@karta/sdk"`);
const verifier = await bundled(`export { verifyWebhook } from "@karta/sdk"`);
console.log(`size: ${whole} bytes minified and gzipped (limit ${LIMIT}); only verifyWebhook: ${verifier}`);
if (whole >= LIMIT) throw new Error(`the package exceeds ${LIMIT} bytes`);
if (verifier * 2 >= whole) throw new Error("bundlers do not remove unused code");
