// node serve.mjs <database> [<keys that a list can reach>]: serves better-auth with node:http.
// Calls its API directly, which is faster than its handler. Verifying needs no credential; listing
// and creating need a session. Prints {"base_url"}.
import { createServer } from "node:http";

import { fromNodeHeaders } from "better-auth/node";

import { auth } from "./auth.mjs";
import { listen } from "./listen.mjs";

const routes = {
  "POST /verify": async (request) => auth.api.verifyApiKey({ body: JSON.parse(await read(request)) }),
  "POST /keys": async (request) =>
    auth.api.createApiKey({ headers: fromNodeHeaders(request.headers), body: JSON.parse(await read(request)) }),
  "GET /keys": async (request, query) =>
    auth.api.listApiKeys({ headers: fromNodeHeaders(request.headers), query: Object.fromEntries(new URLSearchParams(query)) }),
};

function read(request) {
  return new Promise((resolve, reject) => {
    let body = "";
    request.setEncoding("utf8");
    request.on("data", (chunk) => (body += chunk)).on("end", () => resolve(body)).on("error", reject);
  });
}

await auth.$context;
listen(
  createServer(async (request, response) => {
    const [path, query] = request.url.split("?", 2);
    try {
      const answer = JSON.stringify(await routes[`${request.method} ${path}`](request, query));
      response.writeHead(200, { "content-type": "application/json", "content-length": Buffer.byteLength(answer) }).end(answer);
    } catch (error) {
      response.writeHead(error.statusCode ?? 500, { "content-length": 0 }).end();
    }
  }),
);
