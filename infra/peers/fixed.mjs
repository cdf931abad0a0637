// A Node.js server that returns a fixed body: the upper bound for a server in Node.js. Prints
// {"base_url"}.
import { createServer } from "node:http";

import { listen } from "./listen.mjs";

const answer = '{"valid":true}';

listen(
  createServer((_request, response) => {
    response.writeHead(200, { "content-type": "application/json", "content-length": answer.length }).end(answer);
  }),
);
