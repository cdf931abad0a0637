/** Says where it listens, in a line of JSON. Connections may be idle for longer than Node.js lets them: a busy event loop is not an idle client. */
export function listen(server) {
  server.keepAliveTimeout = 60_000;
  server.listen(0, "127.0.0.1", () => console.log(JSON.stringify({ base_url: `http://127.0.0.1:${server.address().port}` })));
}
