// The example of app_audiofork's documentation, step by step: each line on standard input does
// the next step, each answer is a line of JSON.
//
// node front_client.js PORT HOST USERNAME SECRET CHANNEL WSSERVER

const readline = require('readline');
const [port, host, username, secret, channel, wsServer] = process.argv.slice(2);

const ami = new require('asterisk-manager')(port, host, username, secret, true);
ami.keepConnected();
ami.on('userevent', (event) => {
  if (event.userevent.startsWith('AudioFork')) say('event', event);
});

function say(kind, body) {
  console.log(JSON.stringify({ kind, body }));
}

const steps = [
  {
    action: 'AudioFork',
    channel: channel,
    ActionID: '1234',
    WsServer: wsServer,
    Options: 'D(both)',
    Command: 'StartAudioFork',
  },
  { action: 'AudioForkMute', channel: channel, direction: 'both', state: 1 },
  { action: 'AudioForkMute', channel: channel, direction: 'both', state: 0 },
  { action: 'StopAudioFork', channel: channel },
  { action: 'StopAudioFork', channel: channel },
  { action: 'Ping' },
];

readline.createInterface({ input: process.stdin }).on('line', () => {
  ami.action(steps.shift(), (err, res) => say(err ? 'error' : 'answer', err || res));
}).on('close', () => process.exit(0));
