import assert from "node:assert/strict";
import { test } from "node:test";
import { Printed } from "../printed.mjs";

const event = (number, text, turn = "turn_0a") => `id: ${turn}.${number}\nevent: text\ndata: ${JSON.stringify({ turn_id: turn, text })}`;
const REAL = [1, 2, 3].map((number) => event(number, `t${number}`)).join("\n\n");
const check = (...events) => () => new Printed("").checkEvents(events.join("\n\n"), `${REAL}\n\n`);
const printed = (number, text) => event(number, text, "turn_…");

test("events with cut ids pass", check(printed(1, "t1"), printed(2, "t2"), printed(3, "t3")));
test("ellipsis replaces events", () => {
  check(printed(1, "t1"), "…", printed(3, "t3"))();
  check(printed(1, "t1"), "…")();
});
test("another text fails", () => assert.throws(check(printed(1, "t1"), "…", printed(3, "other")), /event 2: data text/));
test("another number fails", () => assert.throws(check("…", printed(4, "t3")), /event 1: number/));
test("missing and additional events fail", () => {
  assert.throws(check(printed(1, "t1")), /prints 1 events, but 3 arrived/);
  assert.throws(check(...[1, 2, 3, 4].map((number) => printed(number, `t${number}`)), "…"), /only 3 arrived/);
});
