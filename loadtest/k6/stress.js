// Up to eight times RATE in steps. Shows where the limit is, and checks that refusals are 503 or 429 as documented.
import { common, ramp, size } from './lib/profiles.js';
import { report } from './lib/summary.js';
import { honest } from './lib/thresholds.js';
import * as traffic from './lib/traffic.js';

const { rate, loginRate, duration } = size(
  { rate: 200, loginRate: 4, duration: 120 },
  { rate: 50, loginRate: 2, duration: 16 },
);
const step = Math.max(1, Math.round(duration / 8));
const climb = (base) => [1, 2, 4, 8].flatMap((factor) => [[step, base * factor], [step, base * factor]]);

export const options = {
  ...common,
  scenarios: { checks: ramp('checks', rate, climb(rate)), visits: ramp('visits', 1, climb(Math.max(1, loginRate / 4))) },
  thresholds: honest,
};

export const { setup, checks, visits, teardown } = traffic;
export const handleSummary = (data) => report('stress', data);
