// A bot that joins Twilio's Media Streams and a realtime speech API, by the flow of messages that the
// vendors' samples have: each delta of the API goes to the call as it comes, a mark after each; when
// the caller begins to speak, `clear` is sent, and how much was heard is told by the time stamps of
// his audio. In the API's place is a model that answers the 20th message that is no silence with all of
// its deltas at once, and notices that the caller speaks at the 20th after that.
//
// Prints a line of JSON for all that happens: {"port": N}, then {"speaks": BASE64}, {"mark": NAME,
// "left": N}, {"interrupted": MS} and {"closed": CODE}.
//
// NODE_PATH=.venv-node/node_modules node testbed/clients/realtime_bot.js

const { WebSocketServer } = require('ws');

const say = (what) => console.log(JSON.stringify(what));
const DELTAS = 20;
const DELTA_BYTES = 1600; // 200 ms
const QUESTION = 20;
const SPEECH_STARTED = 20;
const SILENCE = 0xff;

class Model {
  constructor(on) {
    this.on = on;
    this.heard = 0;
  }

  append(payload) {
    if (Buffer.from(payload, 'base64').every((code) => code === SILENCE)) return;
    this.heard += 1;
    if (this.heard === QUESTION) this.answer();
    if (this.heard === QUESTION + SPEECH_STARTED) this.on.speechStarted();
  }

  answer() {
    // mu-law without its two zeros, which would not come back as they are.
    const code = () => 16 + 128 * Math.floor(Math.random() * 2) + Math.floor(Math.random() * 96);
    const speech = Buffer.from(Array.from({ length: DELTAS * DELTA_BYTES }, code));
    say({ speaks: speech.toString('base64') });
    for (let start = 0; start < speech.length; start += DELTA_BYTES) {
      this.on.delta(speech.subarray(start, start + DELTA_BYTES).toString('base64'));
    }
  }
}

function serve(socket) {
  let streamSid = null;
  let latestMediaTimestamp = 0;
  let responseStartTimestamp = null;
  let markQueue = [];
  let sent = 0;
  const send = (message) => socket.send(JSON.stringify({ ...message, streamSid }));

  const model = new Model({
    delta(payload) {
      send({ event: 'media', media: { payload } });
      if (responseStartTimestamp === null) responseStartTimestamp = latestMediaTimestamp;
      markQueue.push(`part${sent}`);
      send({ event: 'mark', mark: { name: `part${sent}` } });
      sent += 1;
    },
    speechStarted() {
      if (markQueue.length === 0 || responseStartTimestamp === null) return;
      say({ interrupted: latestMediaTimestamp - responseStartTimestamp });
      send({ event: 'clear' });
      markQueue = [];
      responseStartTimestamp = null;
    },
  });

  socket.on('message', (message) => {
    const told = JSON.parse(message);
    if (told.event === 'start') {
      streamSid = told.start.streamSid;
    } else if (told.event === 'media') {
      latestMediaTimestamp = Number(told.media.timestamp);
      model.append(told.media.payload);
    } else if (told.event === 'mark') {
      markQueue.shift();
      say({ mark: told.mark.name, left: markQueue.length });
    }
  });
  socket.on('close', (code) => say({ closed: code }));
}

const server = new WebSocketServer({ host: '127.0.0.1', port: 0 });
server.on('listening', () => say({ port: server.address().port }));
server.on('connection', serve);
process.stdin.on('end', () => process.exit(0));
process.stdin.resume();
