'use strict';

// One WebSocket server with two paths: what comes to /in is added to in.raw, what comes to
// /out to out.raw. Each binary message is 20 ms of signed 16-bit little-endian samples at
// 8000 Hz.
//
// PORT and DIRECTORY in the environment change where it listens and writes.

const fs = require('node:fs');
const path = require('node:path');
const { WebSocketServer } = require('ws');

const PORT = Number(process.env.PORT ?? 8080);
const DIRECTORY = process.env.DIRECTORY ?? '.';
const FILES = { '/in': 'in.raw', '/out': 'out.raw' };

const server = new WebSocketServer({
  host: '127.0.0.1',
  port: PORT,
  maxPayload: 64 * 1024,
  // A path without a file is refused here, which the fork is told as an HTTP status.
  verifyClient: ({ req }, done) => done(pathOf(req) in FILES, 404),
});

function pathOf(request) {
  return new URL(request.url, 'ws://localhost').pathname;
}

server.on('connection', (socket, request) => {
  const file = path.join(DIRECTORY, FILES[pathOf(request)]);
  const output = fs.createWriteStream(file, { flags: 'a' });
  output.on('error', (error) => {
    console.error(`${file}: ${error.message}`);
    socket.close(1011, 'cannot write');
  });
  console.log(`${file}: begins`);

  socket.on('message', (data, isBinary) => {
    if (isBinary) output.write(data);
  });
  socket.on('error', (error) => console.error(`${file}: ${error.message}`));
  // All messages have come before this; end() writes what is still in memory.
  socket.on('close', (code, reason) => {
    output.end(() => console.log(`${file}: ${output.bytesWritten} bytes, ${code} ${reason}`));
  });
});

server.on('listening', () => {
  console.log(`listening on ws://127.0.0.1:${server.address().port}/`);
});
server.on('error', (error) => {
  console.error(error.message);
  process.exitCode = 1;
});

// Node ends by itself once nothing is open: after the last file was written.
for (const signal of ['SIGINT', 'SIGTERM']) {
  process.once(signal, () => {
    server.close();
    for (const socket of server.clients) socket.close(1001, 'server stops');
  });
}
