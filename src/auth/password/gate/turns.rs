//! The order in which jobs are taken from the hashing queue.
use std::collections::HashMap;

/// With more flows than this, those whose turn has come are forgotten. At most as many as there are jobs in the queue
/// are still ahead of their turn.
const FLOWS_KEPT: usize = 1024;

/// Whose turn it is: start-time fair queueing (Goyal, Vin and Cheng, 1996) with jobs of equal size. A job's turn is the
/// present one, or the one after the last job of its address or account, whichever is later. Jobs with the same turn
/// are served in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// The turn of the job that was taken last.
    now: u64,
    /// Each flow's next turn, as long as that is in the future.
    next: HashMap<u64, u64>,
}

impl Turns {
    pub(super) fn of(&self, flows: [u64; 2]) -> u64 {
        flows.iter().filter_map(|flow| self.next.get(flow)).copied().fold(self.now, u64::max)
    }

    pub(super) fn queued(&mut self, flows: [u64; 2], turn: u64) {
        for flow in flows.into_iter().filter(|flow| *flow != 0) {
            self.next.insert(flow, turn + 1);
        }
    }

    /// `is_last`: no other job waits.
    pub(super) fn taken(&mut self, turn: u64, is_last: bool) {
        self.now = self.now.max(turn);
        if is_last {
            self.next.clear();
        } else if self.next.len() > FLOWS_KEPT {
            self.next.retain(|_, next| *next > self.now);
        }
    }
}
