// Traffic while somebody restarts the replicas one after the other (the driver does, or an operator with kubectl
// rollout restart): not one request may fail, logins included.
import { common, constant, size } from './lib/profiles.js';
import * as steady from './lib/steady.js';
import { report } from './lib/summary.js';
import { flawless } from './lib/thresholds.js';

const { rate, loginRate, duration } = size(
  { rate: 150, loginRate: 2, duration: 60 },
  { rate: 80, loginRate: 2, duration: 20 },
);

export const options = {
  ...common,
  scenarios: {
    checks: constant('checks', { rate, duration }),
    visits: constant('visits', { rate: loginRate, duration }),
  },
  thresholds: flawless,
};

export const { setup, checks, visits, teardown } = steady;
export const handleSummary = (data) => report('rolling-restart', data);
