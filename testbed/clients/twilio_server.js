// A server of Twilio's Media Streams with `ws`. Holds each message against the fields that Twilio's
// documentation lists ("Media Streams - WebSocket Messages"), and prints a line of JSON for all that
// happens: {"port": N}, then {"start": {...}}, {"audio": BASE64, "track": T, "timestamp": MS},
// {"digit": D}, {"stop": {...}}, {"closed": CODE}, and {"wrong": TEXT} for what is not as it is listed.
//
// NODE_PATH=.venv-node/node_modules node testbed/clients/twilio_server.js

const { WebSocketServer } = require('ws');

const say = (what) => console.log(JSON.stringify(what));
const text = (value) => typeof value === 'string';
const number = (value) => text(value) && /^\d+$/.test(value);
const sid = (kind) => (value) => text(value) && new RegExp(`^${kind}[0-9a-f]{32}$`).test(value);
const oneOf = (...allowed) => (value) => allowed.includes(value);
const base64 = (value) => text(value) && Buffer.from(value, 'base64').toString('base64') === value;
const tracks = (value) => Array.isArray(value) && value.length > 0 && value.every(oneOf('inbound', 'outbound'));
const texts = (value) => Object.values(value).every(text);

const FIELDS = {
  connected: { event: text, protocol: oneOf('Call'), version: oneOf('1.0.0') },
  start: {
    event: text,
    sequenceNumber: oneOf('1'),
    start: {
      streamSid: sid('MZ'),
      accountSid: sid('AC'),
      callSid: sid('CA'),
      tracks,
      customParameters: texts,
      mediaFormat: {
        encoding: oneOf('audio/x-mulaw'),
        sampleRate: oneOf(8000),
        channels: oneOf(1),
      },
    },
    streamSid: sid('MZ'),
  },
  media: {
    event: text,
    sequenceNumber: number,
    media: { track: oneOf('inbound', 'outbound'), chunk: number, timestamp: number, payload: base64 },
    streamSid: sid('MZ'),
  },
  dtmf: {
    event: text,
    sequenceNumber: number,
    dtmf: { track: oneOf('inbound_track'), digit: (value) => /^[0-9*#A-D]$/.test(value) },
    streamSid: sid('MZ'),
  },
  stop: {
    event: text,
    sequenceNumber: number,
    stop: { accountSid: sid('AC'), callSid: sid('CA') },
    streamSid: sid('MZ'),
  },
};

// Say what of a message is not as it is listed: a field that is missing, added, or of another form.
function check(told, fields, place) {
  for (const name of new Set([...Object.keys(told), ...Object.keys(fields)])) {
    const here = `${place}.${name}`;
    const allowed = fields[name];
    if (allowed === undefined || !(name in told)) say({ wrong: `${here}: listed or sent, not both` });
    else if (typeof allowed === 'object') check(told[name], allowed, here);
    else if (!allowed(told[name])) say({ wrong: `${here}: ${JSON.stringify(told[name])}` });
  }
}

function read(message, isBinary, sequence) {
  if (isBinary) return say({ wrong: 'a binary message' });
  const told = JSON.parse(message);
  if (!(told.event in FIELDS)) return say({ wrong: `the event ${told.event}` });
  check(told, FIELDS[told.event], told.event);
  if (told.event !== 'connected' && Number(told.sequenceNumber) !== ++sequence.last) {
    say({ wrong: `number ${told.sequenceNumber}, not ${sequence.last}` });
  }
  if (told.event === 'media') {
    const { payload, track, timestamp, chunk } = told.media;
    say({ audio: payload, track, timestamp: Number(timestamp), chunk: Number(chunk) });
  } else if (told.event === 'dtmf') say({ digit: told.dtmf.digit });
  else say({ [told.event]: told[told.event] ?? {} });
}

const server = new WebSocketServer({ host: '127.0.0.1', port: 0 });
server.on('listening', () => say({ port: server.address().port }));
server.on('connection', (socket) => {
  const sequence = { last: 0 };
  socket.on('message', (message, isBinary) => read(message, isBinary, sequence));
  socket.on('close', (code) => say({ closed: code }));
});
// Whoever started it may break the connection, so that another follows.
process.stdin.on('data', () => server.clients.forEach((socket) => socket.terminate()));
process.stdin.on('end', () => process.exit(0));
