// A parser of server-sent events over bytes, as the HTML standard defines them.
import { KartaResponseError } from "./shared/errors.js";

/** One event of a stream. */
export interface Frame {
  /** The stream's last `id`, which events without an `id` keep. Empty before the first. */
  id: string;
  /** Lines of the event's data, joined with line feeds. */
  data: string;
}

const LF = 10;
const CR = 13;
const COLON = 58;
const SPACE = 32;
const BYTE_ORDER_MARK = "\uFEFF";

/** Maximum bytes of a frame, so that a damaged stream cannot fill the memory. */
const MAX_FRAME_BYTES = 8 << 20;

/**
 * Collects frames from chunks that are cut anywhere. A line is decoded when it is complete, so a
 * cut within a character or a line break changes nothing. A frame that is not complete at the end
 * of the stream is lost.
 */
export class SseParser {
  readonly #decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  /** Parts of the line that is not complete yet. */
  #line: Uint8Array[] = [];
  #frameBytes = 0;
  #isFirstLine = true;
  #skipsLineFeed = false;
  #data: string[] = [];
  #pendingId = "";
  #id = "";

  /**
   * Adds bytes and returns the frames that they complete.
   *
   * @throws {KartaResponseError} for a frame of more than 8 MiB.
   */
  push(chunk: Uint8Array): Frame[] {
    const frames: Frame[] = [];
    let start = 0;
    for (let at = 0; at < chunk.length; at++) {
      const byte = chunk[at];
      if (byte === LF && this.#skipsLineFeed) start = at + 1;
      else if (byte === LF || byte === CR) {
        this.#keep(chunk.subarray(start, at));
        const frame = this.#endLine();
        if (frame !== undefined) frames.push(frame);
        start = at + 1;
      }
      this.#skipsLineFeed = byte === CR;
    }
    // The chunk's memory belongs to the caller, so the rest is copied.
    this.#keep(chunk.slice(start));
    return frames;
  }

  #keep(bytes: Uint8Array): void {
    if (bytes.length > 0) this.#line.push(bytes);
    this.#frameBytes += bytes.length;
    if (this.#frameBytes > MAX_FRAME_BYTES) throw new KartaResponseError(`an event of the stream has more than ${MAX_FRAME_BYTES} bytes`);
  }

  /** Reads the complete line. Returns the frame that it ends, if it is empty. */
  #endLine(): Frame | undefined {
    const bytes = joined(this.#line);
    this.#line = [];
    if (bytes.length === 0) return this.#endFrame();
    const colon = bytes.indexOf(COLON);
    const nameEnd = colon < 0 ? bytes.length : colon;
    let name = this.#decoder.decode(bytes.subarray(0, nameEnd));
    if (this.#isFirstLine && name.startsWith(BYTE_ORDER_MARK)) name = name.slice(1);
    this.#isFirstLine = false;
    const valueStart = nameEnd + (bytes[nameEnd + 1] === SPACE ? 2 : 1);
    if (name === "data") this.#data.push(this.#decoder.decode(bytes.subarray(valueStart)));
    else if (name === "id" && !bytes.includes(0)) this.#pendingId = this.#decoder.decode(bytes.subarray(valueStart));
    return undefined;
  }

  #endFrame(): Frame | undefined {
    const data = this.#data;
    this.#isFirstLine = false;
    this.#data = [];
    this.#frameBytes = 0;
    this.#id = this.#pendingId;
    return data.length === 0 ? undefined : { id: this.#id, data: data.join("\n") };
  }
}

function joined(parts: readonly Uint8Array[]): Uint8Array {
  const [first] = parts;
  if (parts.length === 1 && first !== undefined) return first;
  const whole = new Uint8Array(parts.reduce((length, part) => length + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}
