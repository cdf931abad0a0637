// Checks that links between the repository's pages lead to an existing file and heading.
import { existsSync, readFileSync, readdirSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { dirname, join, resolve } from "node:path";
import { anchors, links } from "./page.mjs";

const root = fileURLToPath(new URL("../..", import.meta.url));
const within = (folder) => readdirSync(join(root, folder)).filter((name) => name.endsWith(".md")).map((name) => join(folder, name));
const pages = [...within("."), ...within("docs"), ...within("docs/decisions"), "sdk/typescript/README.md", "sdk/sessions/README.md"];
const read = (path) => readFileSync(path, "utf8");

const broken = [];
let count = 0;
for (const page of pages) {
  for (const { target, line } of links(read(join(root, page)))) {
    const [path, anchor] = target.split("#");
    const file = path === "" ? join(root, page) : resolve(dirname(join(root, page)), path);
    count += 1;
    if (!existsSync(file)) broken.push(`${page}:${line}: missing file ${path}`);
    else if (anchor && !anchors(read(file)).has(anchor)) broken.push(`${page}:${line}: ${path || page} has no heading #${anchor}`);
  }
}
if (broken.length > 0) throw new Error(broken.join("\n"));
console.log(`docs: ${pages.length} pages, ${count} links between them`);
