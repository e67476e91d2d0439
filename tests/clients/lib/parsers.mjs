// The parsers that a suite and its server may be told to use instead of the default one: PARSER, or `--parser`.
import Emitter from "node:events";
import msgpack from "socket.io-msgpack-parser";

/** The whole packet as one line of JSON: as small as a parser of one's own can be. It has no form for binary. */
class JsonEncoder {
  encode({ type, nsp, data, id }) {
    return [JSON.stringify({ type, nsp, data, id })];
  }
}

class JsonDecoder extends Emitter {
  add(line) {
    const packet = JSON.parse(line);
    if (![0, 1, 2, 3, 4].includes(packet.type) || typeof packet.nsp !== "string") throw new Error("no packet");
    this.emit("decoded", packet);
  }

  destroy() {}
}

export const PARSERS = { msgpack, json: { Encoder: JsonEncoder, Decoder: JsonDecoder } };

/** The options of a client or of a server with the parser of this name. */
export const parserOptions = (name) => (name ? { parser: PARSERS[name] } : {});

/** The parser that a suite uses. */
export const PARSER = process.env.PARSER;
