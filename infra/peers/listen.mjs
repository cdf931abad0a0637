/**
 * Starts a server and prints its address as a line of JSON. The keep-alive timeout is longer than
 * Node.js's default, because a busy event loop would otherwise close connections in use.
 */
export function listen(server) {
  server.keepAliveTimeout = 60_000;
  server.listen(0, "127.0.0.1", () => console.log(JSON.stringify({ base_url: `http://127.0.0.1:${server.address().port}` })));
}
