// Measures the latency of session checks while logins flood the fleet. Checks run at a constant rate. In every second
// window, CLIENTS users log in without a pause, directly at the replicas, because the balancer limits logins. Calm and
// stormy windows alternate, so that other load on the machine affects both.
import exec from 'k6/execution';

import { check, login, sessionOf } from './lib/client.js';
import { front, number, seconds, side } from './lib/fleet.js';
import { common, constant, size } from './lib/profiles.js';
import { report } from './lib/summary.js';
import { honest, observed } from './lib/thresholds.js';
import { removeUsers, seedSessions, seedUsers } from './lib/users.js';

const { rate, duration } = size({ rate: 150, loginRate: 0, duration: 90 }, { rate: 80, loginRate: 0, duration: 25 });
const clients = number('CLIENTS', 16);
const window = Math.max(3, seconds('WINDOW', Math.round(duration / (duration < 60 ? 5 : 9))));
// Seconds after each change of window that don't count, because jobs queued in a flood are still being hashed.
const settle = Math.min(2, window / 3);

// Windows are calm, storm, calm, …. The last one is calm, so that the run doesn't end in a storm.
const floods = Math.floor((duration / window - 1) / 2);
if (floods < 1) throw new Error('DURATION must be at least three times WINDOW');
const storms = Object.fromEntries(
  Array.from({ length: floods }, (_, n) => [
    `storm_${n + 1}`,
    {
      executor: 'constant-vus',
      exec: 'storm',
      vus: clients,
      startTime: `${(2 * n + 1) * window}s`,
      duration: `${window}s`,
      gracefulStop: '40s',
    },
  ]),
);
const length = (2 * floods + 1) * window;

export const options = {
  ...common,
  scenarios: { checks: constant('checks', { rate, duration: length }), ...storms },
  thresholds: { ...honest, ...observed('authfleet_check_ms', 'phase', ['calm', 'storm'], 'p(99)>=0') },
};

export function setup() {
  // As many users as clients, because attempts at one account wait for each other by design.
  const users = seedUsers(clients);
  return { users, sessions: seedSessions(users, 2 * clients) };
}

export function checks({ sessions }) {
  const at = exec.scenario.progress * length;
  const into = at % window;
  const stormy = Math.floor(at / window) % 2 === 1;
  const ending = length - at < 1;
  check(front(), sessions[Math.floor(Math.random() * sessions.length)], {
    phase: into < settle || ending ? 'between' : stormy ? 'storm' : 'calm',
  });
}

// This client's session. The next login sends its cookie and ends it.
let session = null;

export function storm({ users }) {
  const turn = exec.scenario.iterationInTest;
  const answer = login(side(turn), users[turn % users.length], { cookie: session?.cookie });
  if (answer.ok) session = sessionOf(answer);
}

export const teardown = ({ users }) => removeUsers(users);

export function handleSummary(data) {
  const p99 = (phase) => data.metrics[`authfleet_check_ms{phase:${phase}}`]?.values?.['p(99)'] || 0;
  const ratio = p99('calm') ? p99('storm') / p99('calm') : null;
  return report('login-storm', data, {
    lines: [
      `p99 of session checks: ${p99('calm').toFixed(1)} ms without, ${p99('storm').toFixed(1)} ms with the flood of logins` +
        (ratio ? `: ${ratio.toFixed(2)}-fold` : ''),
    ],
    extra: { p99_calm_ms: p99('calm'), p99_storm_ms: p99('storm'), ratio },
  });
}
