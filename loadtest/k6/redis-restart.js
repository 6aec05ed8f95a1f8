// Session checks while Redis goes away and comes back: 503 as long as it is gone, never 401; every session is still
// there afterwards. When the 503s came is compared with when Redis was gone by the driver.
import { common, constant, size } from './lib/profiles.js';
import { report } from './lib/summary.js';
import { failingClosed } from './lib/thresholds.js';
import * as traffic from './lib/traffic.js';

const { rate, duration } = size({ rate: 100, loginRate: 0, duration: 40 }, { rate: 60, loginRate: 0, duration: 18 });

export const options = { ...common, scenarios: { checks: constant('checks', { rate, duration }) }, thresholds: failingClosed };

export const { setup, checks, teardown } = traffic;
export const handleSummary = (data) => report('redis-restart', data);
