// The requests of most scenarios: checks of existing sessions, and visits (sign in, check, sign out).
import { check, login, logout, sessionOf } from './client.js';
import { front } from './fleet.js';
import { removeUsers, seedSessions, seedUsers } from './users.js';

const USERS = 5;
const SESSIONS = 40;

export function setup() {
  const users = seedUsers(USERS);
  return { users, sessions: seedSessions(users, SESSIONS) };
}

export function checks({ sessions }) {
  check(front(), sessions[Math.floor(Math.random() * sessions.length)]);
}

export function visits({ users }) {
  const answer = login(front(), users[Math.floor(Math.random() * users.length)]);
  if (!answer.ok) return;
  const session = sessionOf(answer);
  check(front(), session);
  logout(front(), session);
  // Every replica must refuse it at once.
  check(front(), session, { want: 401, accept: ({ code }) => code === 'session_invalid' });
}

export function teardown({ users, sessions }) {
  // All these sessions must have survived the scenario.
  for (const session of sessions) check(front(), session, { phase: 'after' });
  removeUsers(users);
}
