// Session checks while Redis is killed and restarted: 503 during the outage, never 401, and afterwards every session is
// still valid. The driver compares the times of the 503s with the outage.
import { common, constant, size } from './lib/profiles.js';
import { report } from './lib/summary.js';
import { failingClosed } from './lib/thresholds.js';
import * as traffic from './lib/traffic.js';

const { rate, duration } = size({ rate: 100, loginRate: 0, duration: 40 }, { rate: 60, loginRate: 0, duration: 18 });

export const options = { ...common, scenarios: { checks: constant('checks', { rate, duration }) }, thresholds: failingClosed };

export const { setup, checks, teardown } = traffic;
export const handleSummary = (data) => report('redis-restart', data);
