// The same job in Node.js with the package ws: AudioSocket in, one WebSocket client for each leg.
//
// node relay.js --url URL [--ca FILE] [--mix]; prints {"port": N}.

const fs = require("node:fs");
const net = require("node:net");
const { parseArgs } = require("node:util");
const WebSocket = require("ws");

const HEADER_BYTES = 3;
const UUID = 0x01;
const SLIN = 0x10;

const { values: options } = parseArgs({
  options: { url: { type: "string" }, ca: { type: "string" }, mix: { type: "boolean" } },
});
const client = {
  perMessageDeflate: false,
  ...(options.ca && { ca: fs.readFileSync(options.ca) }),
};

function mix(pairs) {
  const mono = Buffer.allocUnsafe(pairs.length / 2);
  for (let at = 0; at < mono.length; at += 2) {
    const sum = pairs.readInt16LE(2 * at) + pairs.readInt16LE(2 * at + 2);
    mono.writeInt16LE(Math.max(-32768, Math.min(32767, sum)), at);
  }
  return mono;
}

function openSink(leg) {
  const sink = new WebSocket(options.url, client);
  leg.pause();
  sink.on("open", () => leg.resume());
  sink.on("error", (error) => {
    console.error(`sink: ${error.message}`);
    leg.destroy();
  });
  leg.on("close", () => sink.close(1000));
  return sink;
}

const server = net.createServer((leg) => {
  let rest = Buffer.alloc(0);
  let sink = null;
  leg.on("error", () => leg.destroy());
  leg.on("data", (chunk) => {
    const bytes = rest.length ? Buffer.concat([rest, chunk]) : chunk;
    let at = 0;
    while (bytes.length - at >= HEADER_BYTES) {
      const end = at + HEADER_BYTES + bytes.readUInt16BE(at + 1);
      if (end > bytes.length) break;
      const payload = bytes.subarray(at + HEADER_BYTES, end);
      if (bytes[at] === UUID) sink = openSink(leg);
      else if (bytes[at] === SLIN) sink.send(options.mix ? mix(payload) : payload);
      at = end;
    }
    rest = bytes.subarray(at);
  });
});

server.listen({ host: "127.0.0.1", port: 0, backlog: 1024 }, () => {
  console.log(JSON.stringify({ port: server.address().port }));
});
