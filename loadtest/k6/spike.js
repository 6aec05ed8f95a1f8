// From RATE to eight times RATE within two seconds, and back.
import { common, ramp, size } from './lib/profiles.js';
import { report } from './lib/summary.js';
import { honest } from './lib/thresholds.js';
import * as traffic from './lib/traffic.js';

const { rate, loginRate, duration } = size(
  { rate: 150, loginRate: 2, duration: 50 },
  { rate: 40, loginRate: 1, duration: 15 },
);
const part = Math.max(3, Math.round(duration / 5));
const jump = (base) => [[part, base], [2, base * 8], [2 * part, base * 8], [2, base], [part, base]];

export const options = {
  ...common,
  scenarios: { checks: ramp('checks', rate, jump(rate)), visits: ramp('visits', loginRate, jump(loginRate)) },
  thresholds: honest,
};

export const { setup, checks, visits, teardown } = traffic;
export const handleSummary = (data) => report('spike', data);
