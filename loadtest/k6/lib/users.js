// Creates the users and sessions of a run through the API, and removes them at the end.
import { randomBytes } from 'k6/crypto';

import { call, login, logout, patiently, says, sessionOf } from './client.js';
import { side } from './fleet.js';

const random = (bytes) => Array.from(new Uint8Array(randomBytes(bytes)), (b) => b.toString(16).padStart(2, '0')).join('');

export function seedUsers(count) {
  const run = random(6);
  return Array.from({ length: count }, (_, n) => {
    const user = { email: `loadtest-${run}-${n}@example.com`, password: random(16) };
    const answer = patiently(() => call('register', 'POST', side(n), '/auth/register', { want: 201, body: user }));
    if (!answer.ok) throw new Error(`cannot register a user: ${says(answer)}`);
    return { ...user, user_id: answer.json.user_id };
  });
}

// Several sessions for each of a few users, which saves the hashes of registrations.
export function seedSessions(users, count) {
  return Array.from({ length: count }, (_, n) => {
    const answer = patiently(() => login(side(n), users[n % users.length]));
    if (!answer.ok) throw new Error(`cannot log in: ${says(answer)}`);
    return sessionOf(answer);
  });
}

// Deletes the accounts, which ends all their sessions.
export function removeUsers(users) {
  users.forEach((user, n) => {
    const opened = patiently(() => login(side(n), user, { cleanup: true }));
    if (!opened.ok) return console.warn(`left behind: ${user.email}: ${says(opened)}`);
    const cookie = opened.cookie;
    const gone = patiently(() =>
      call('remove', 'DELETE', side(n), '/auth/account', {
        want: 204,
        cookie,
        body: { password: user.password },
        cleanup: true,
      }),
    );
    if (!gone.ok) {
      console.warn(`left behind: ${user.email}: ${says(gone)}`);
      logout(side(n), { cookie }, { cleanup: true });
    }
  });
}
