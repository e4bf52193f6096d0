//! Who waits where, as it was told: lines of requests at edges (SPEC LB-4).

use skein_core::balance::Constraint;
use skein_core::queue::Want;
use skein_core::{AppId, NodeNumber};

use super::Reference;
use crate::agenda::Micros;

/// A request that waits.
#[derive(Debug, Clone)]
pub(super) struct Waiter {
    edge: NodeNumber,
    request: u64,
    pub(super) app: AppId,
    pub(super) wants: Constraint,
    want: Want,
    tries: bool,
    pub(super) since: Micros,
    /// Since when it is the first of its line.
    pub(super) first: Option<Micros>,
}

impl Waiter {
    pub(super) fn is(&self, edge: NodeNumber, request: u64) -> bool {
        self.edge == edge && self.request == request
    }

    fn is_for(&self, edge: NodeNumber, app: AppId, want: &Want) -> bool {
        self.edge == edge && self.app == app && self.want == *want
    }
}

impl Reference {
    /// How many wait at an edge: for an app, and in all.
    pub fn waiting(&self, edge: NodeNumber, app: AppId) -> (usize, usize) {
        let here = self.lines.iter().filter(|waiter| waiter.edge == edge);
        (here.clone().filter(|waiter| waiter.app == app).count(), here.count())
    }

    /// A request waits from now on, behind those who want the same.
    pub fn joins(
        &mut self,
        now: Micros,
        edge: NodeNumber,
        request: u64,
        app: AppId,
        (wants, want): (Constraint, Want),
    ) {
        let ahead = self.lines.iter().any(|waiter| waiter.is_for(edge, app, &want));
        let first = (!ahead).then_some(now);
        self.lines.push(Waiter { edge, request, app, wants, want, tries: false, since: now, first });
    }

    /// It tries from its place, from the moment on at which it was woken: who came earlier, wants the
    /// same, and does not.
    pub fn tries(&mut self, edge: NodeNumber, request: u64) -> Option<u64> {
        let place = self.lines.iter().position(|w| w.is(edge, request))?;
        if std::mem::replace(&mut self.lines[place].tries, true) {
            return None;
        }
        let Waiter { app, want, .. } = &self.lines[place];
        let ahead = self.lines[..place].iter().find(|w| w.is_for(edge, *app, want) && !w.tries);
        ahead.map(|waiter| waiter.request)
    }

    /// It found no room.
    pub fn waits_on(&mut self, edge: NodeNumber, request: u64) {
        if let Some(waiter) = self.lines.iter_mut().find(|w| w.is(edge, request)) {
            waiter.tries = false;
        }
    }

    /// A request goes to a Machine without a place: who waits for the same.
    pub fn passes(&self, edge: NodeNumber, app: AppId, want: &Want) -> Option<u64> {
        let ahead = self.lines.iter().find(|waiter| waiter.is_for(edge, app, want));
        ahead.map(|waiter| waiter.request)
    }

    /// A request has its place no longer, if it had one.
    pub(super) fn leaves(&mut self, now: Micros, edge: NodeNumber, request: u64) -> Option<Waiter> {
        let place = self.lines.iter().position(|w| w.is(edge, request))?;
        let left = self.lines.remove(place);
        let next = self.lines.iter_mut().find(|waiter| waiter.is_for(edge, left.app, &left.want));
        next.filter(|next| next.first.is_none()).into_iter().for_each(|next| next.first = Some(now));
        Some(left)
    }

    /// An edge is gone, with all that wait there and what it counted.
    pub fn forget_edge(&mut self, edge: NodeNumber) {
        self.lines.retain(|waiter| waiter.edge != edge);
        self.budgets.retain(|(of, _), _| *of != edge);
    }
}
