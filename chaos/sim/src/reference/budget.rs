//! Retries beside requests, counted one by one (SPEC LB-9).

use skein_core::{AppId, NodeNumber};

use super::Reference;
use crate::agenda::{Micros, SECOND};

/// Requests that an edge had for an app, and retries of them.
#[derive(Debug, Default)]
pub(super) struct Spent {
    requests: Vec<Micros>,
    retries: Vec<Micros>,
}

/// Retries are counted by the second: the window is the running one and the nine before it.
fn within(times: &[Micros], now: Micros) -> u32 {
    // The edge's clock began at 1 ms.
    let second = |at: Micros| (at / 1_000 + 1) / 1_000;
    times.iter().rev().take_while(|at| second(**at) + 9 >= second(now)).count() as u32
}

impl Reference {
    /// A request for an app came to an edge.
    pub fn requests(&mut self, now: Micros, edge: NodeNumber, app: AppId) {
        self.budgets.entry((edge, app)).or_default().requests.push(now);
    }

    /// A request is tried again: how often that was done lately, this time included, and how often it may.
    pub fn retries(&mut self, now: Micros, edge: NodeNumber, app: AppId) -> (u32, u32) {
        let spent = self.budgets.entry((edge, app)).or_default();
        spent.retries.push(now);
        spent.retries.retain(|at| at + 20 * SECOND > now);
        self.budget(now, edge, app)
    }

    /// How often requests were tried again lately, and how often they may be.
    pub(super) fn budget(&self, now: Micros, edge: NodeNumber, app: AppId) -> (u32, u32) {
        let Some(spent) = self.budgets.get(&(edge, app)) else { return (0, 10) };
        (within(&spent.retries, now), (within(&spent.requests, now) / 5).max(10))
    }
}
