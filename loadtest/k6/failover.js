// Checks and visits while the primaries of Redis and PostgreSQL are killed: 503 until others have replaced them, never 401
// about a session from before, never 200 about a session that has ended. The driver compares the times of the 503s with
// the failovers.
import { check, login, logout, sessionOf } from './lib/client.js';
import { front } from './lib/fleet.js';
import { common, constant, size } from './lib/profiles.js';
import { report } from './lib/summary.js';
import { failingClosed } from './lib/thresholds.js';
import * as traffic from './lib/traffic.js';

const { rate, loginRate, duration } = size({ rate: 100, loginRate: 3, duration: 240 }, { rate: 60, loginRate: 2, duration: 150 });

export const options = {
  ...common,
  scenarios: {
    checks: constant('checks', { rate, duration }),
    visits: constant('visits', { rate: loginRate, duration }),
  },
  thresholds: failingClosed,
};

// Sessions of this virtual user whose sign-out was acknowledged. No later primary may know them.
const ended = [];
const refused = { want: 401, accept: ({ code }) => code === 'session_invalid' };

export function visits({ users }) {
  if (ended.length) check(front(), ended[Math.floor(Math.random() * ended.length)], refused);
  const answer = login(front(), users[Math.floor(Math.random() * users.length)]);
  if (!answer.ok) return;
  const session = sessionOf(answer);
  check(front(), session, { mayBeLost: true });
  if (!logout(front(), session, { mayBeLost: true }).ok) return;
  ended.push(session);
  check(front(), session, refused);
}

export const { setup, checks, teardown } = traffic;
export const handleSummary = (data) => report('failover', data);
