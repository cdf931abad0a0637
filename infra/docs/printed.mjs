// Compares the answers that a page prints with those of a run. Ids, tokens and times differ between
// runs: they must have the printed form, and a value that is printed twice must be the same in the
// run. Everything else must be equal.

const BASE_URL = "http://127.0.0.1:8787";
const CUT = "…";

/**
 * Forms of values that differ between runs. `unique`: two different printed values must differ in
 * the run.
 */
const RANDOM = [
  { form: /^kt_live_[0-9A-Za-z]{6}$/, unique: true },
  { form: /^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z$/, unique: false },
  { form: /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/, unique: true },
  { form: /^[0-9a-f]{32}$/, unique: true },
  { form: /^evt_[0-9]{15}$/, unique: true },
  { form: /^[0-9]{15}$/, unique: true },
  // Unix seconds.
  { form: /^1[0-9]{9}$/, unique: false },
];

/** Maps a page's printed values to the values of one run. */
export class Printed {
  #known = new Map();

  constructor(baseUrl) {
    this.#known.set(BASE_URL, baseUrl);
  }

  /** Sets the run's value for a placeholder that the page asks its reader to replace. */
  set(printed, real) {
    this.#known.set(printed, real);
  }

  /** Returns a block with the run's values instead of the printed ones. */
  fill(block) {
    const filled = block
      .replaceAll(BASE_URL, this.#known.get(BASE_URL))
      .replaceAll(/[0-9A-Za-z_-]+…|(?<![0-9A-Za-z_])[0-9]{15}(?![0-9A-Za-z_])/g, (printed) => this.#known.get(printed) ?? printed);
    const left = filled.match(/\S*…\S*/);
    if (left) throw new Error(`has a placeholder that no answer explains: ${left[0]}`);
    return filled;
  }

  /** Throws at the first JSON value that differs. Both texts may contain several values. */
  checkJson(printed, real) {
    const [expected, got] = [values(printed, "the printed text"), values(real, "the answer")];
    if (expected.length !== got.length) throw new Error(`prints ${expected.length} JSON values, but the answer has ${got.length}`);
    expected.forEach((value, n) => this.#compare(value, got[n], expected.length > 1 ? `value ${n + 1}: ` : ""));
  }

  /** Throws at the first line that differs. */
  checkText(printed, real) {
    const [expected, got] = [printed.trimEnd().split("\n"), real.trimEnd().split("\n")];
    for (let n = 0; n < Math.max(expected.length, got.length); n++) {
      if (got[n] !== expected[n]) throw new Error(`line ${n + 1} is printed as ${show(expected[n])} but was ${show(got[n])}`);
    }
  }

  /** Compares status and headers as `curl -i` prints them. */
  checkHttp(printed, real) {
    const plain = (text) => text.trim().replace(/^(x-request-id|date): .*$/gim, "$1: …").replaceAll("\r", "");
    this.checkText(plain(printed), plain(real));
  }

  /**
   * Compares server-sent events. A printed line with only an ellipsis replaces one or more events.
   */
  checkEvents(printed, real) {
    const [expected, got] = [printed, real].map((text) => text.trim().split("\n\n"));
    const gap = expected.indexOf(CUT);
    if (gap >= 0) {
      const left = got.length - (expected.length - 1);
      if (left < 1) throw new Error(`leaves out events, but only ${got.length} arrived`);
      expected.splice(gap, 1);
      got.splice(gap, left);
    }
    if (expected.length !== got.length) throw new Error(`prints ${expected.length} events, but ${got.length} arrived`);
    expected.forEach((event, n) => this.#compare(fields(event), fields(got[n]), `event ${n + 1}: `));
  }

  #compare(printed, real, at) {
    const kind = (value) => (Array.isArray(value) ? "a list" : value === null ? "null" : typeof value);
    if (kind(printed) !== kind(real)) throw new Error(`${at}is printed as ${show(printed)} but was ${show(real)}`);
    if (typeof printed !== "object" || printed === null) return this.#compareScalar(printed, real, at);
    const [expected, got] = [Object.keys(printed).sort(), Object.keys(real).sort()];
    if (expected.join() !== got.join()) throw new Error(`${at}has the fields ${got}, but ${expected} are printed`);
    for (const name of expected) this.#compare(printed[name], real[name], `${at}${name} `);
  }

  #compareScalar(printed, real, at) {
    const fault = () => new Error(`${at}is printed as ${show(printed)} but was ${show(real)}`);
    const text = String(printed);
    if (text.endsWith(CUT)) {
      const start = text.slice(0, -CUT.length);
      if (!real.startsWith(this.#known.get(start) ?? start) || real.length <= text.length) throw fault();
      return void this.#known.set(text, real);
    }
    const random = RANDOM.find(({ form }) => form.test(text));
    if (!random) {
      if (printed !== real) throw fault();
      return;
    }
    if (!random.form.test(String(real))) throw fault();
    const known = this.#known.get(text);
    if (known !== undefined && known !== String(real)) throw new Error(`${at}is printed as ${text} again, but is a different value`);
    if (known === undefined && random.unique && [...this.#known.values()].includes(String(real))) {
      throw new Error(`${at}is printed as ${text}, but the same value is printed differently elsewhere`);
    }
    this.#known.set(text, String(real));
  }
}

/** Returns the fields of a server-sent event: the parts of its id, its type and its JSON. */
function fields(event) {
  const lines = event.split("\n").map((line) => line.match(/^(\w+): (.*)$/) ?? []);
  const { id = "", event: type, data = "" } = Object.fromEntries(lines.map(([, name, value]) => [name, value]));
  const [, turn, number] = id.match(/^(.*)\.([0-9]+)$/) ?? [];
  if (!turn) throw new Error(`has an event without an id: ${show(event)}`);
  return { id: turn, number, event: type, data: values(data, "the event")[0] };
}

/** Returns the JSON values that a text contains one after another. */
export function values(text, what) {
  const found = [];
  let [start, depth, inString] = [0, 0, false];
  for (let at = 0; at < text.length; at++) {
    if (inString) {
      if (text[at] === "\\") at++;
      else if (text[at] === '"') inString = false;
    } else if (text[at] === '"') inString = true;
    else if ("[{".includes(text[at])) depth++;
    else if ("]}".includes(text[at]) && --depth === 0) {
      found.push(text.slice(start, at + 1));
      start = at + 1;
    }
  }
  try {
    if (text.slice(start).trim() !== "") throw new Error("");
    return found.map((value) => JSON.parse(value));
  } catch {
    throw new Error(`${what} is not JSON: ${show(text)}`);
  }
}

/** Returns a value as text without secrets, cut to 600 characters. */
export function show(value) {
  const text = typeof value === "string" ? value : JSON.stringify(value) ?? "nothing";
  const scrubbed = text
    .replace(/(kt_live_[0-9A-Za-z]{6})[0-9A-Za-z]+/g, "$1…")
    .replace(/eyJ[\w-]{10,}\.[\w-]+\.[\w-]+/g, "eyJ…")
    .replace(/(karta_service_|whsec_)[\w+/=-]+/g, "$1…");
  return scrubbed.length > 600 ? `${scrubbed.slice(0, 600)}…` : scrubbed;
}
