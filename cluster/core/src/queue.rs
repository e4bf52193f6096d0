//! The edge's queue: requests that wait until a Machine can take them (SPEC LB-4).
//!
//! What: who waits, in which order, and who may try next. What not: timers, wakers, connections; a
//! waiter is whatever the shell can wake.
//!
//! A service has one queue, FIFO by ticket. Those that want the same (any Machine, one Machine, some
//! regions, all but some that failed them) keep their order among each other: a newcomer waits behind them. One that was let try and
//! found no room waits again at its old place. Invariants: at most [`Bounds`] wait, a ticket that left
//! is never named again, the first of each want is always one that may poll.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::balance::Constraint;
use crate::id::{AppId, MachineId};
use crate::planted::{self, Bug};
use crate::region::RegionCode;

/// How often the first in line tries by itself: a hint may be lost (SPEC LB-4).
pub const POLL: Duration = Duration::from_millis(200);

/// Attempts that may find a full Machine before a request waits: the view was stale once or twice, and
/// asking on costs the workers more than it helps.
pub const MAX_FULL: u32 = 2;

/// How many may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// For one service.
    pub service: usize,
    /// In all.
    pub all: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { service: 1_000, all: 10_000 }
    }
}

/// No more may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many requests wait already")]
pub struct Crowded;

/// A place in line; grows, so the smaller came first.
pub type Ticket = u64;

/// A service: an app and one of its public ports.
pub type Service = (AppId, u16);

/// What a waiting request can use.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Want {
    machine: Option<MachineId>,
    regions: Vec<String>,
    never: Vec<MachineId>,
}

impl Want {
    /// What a request asks for that may go back to those of its excluded Machines that only `refused` it.
    pub fn new(constraint: &Constraint, refused: &[MachineId]) -> Self {
        let Constraint { machine, regions, exclude, .. } = constraint;
        let mut never: Vec<_> =
            exclude.iter().filter(|machine| !refused.contains(machine)).copied().collect();
        never.sort_unstable();
        Self { machine: *machine, regions: regions.clone(), never }
    }

    /// Whether room at that Machine is of use; `within` tells whether a name (a region or an alias)
    /// means a region.
    pub fn takes(
        &self,
        machine: MachineId,
        region: RegionCode,
        within: impl Fn(&str, RegionCode) -> bool,
    ) -> bool {
        self.machine.is_none_or(|wanted| wanted == machine)
            && !self.never.contains(&machine)
            && (self.regions.is_empty() || self.regions.iter().any(|name| within(name, region)))
    }
}

#[derive(Debug)]
struct Waiter<W> {
    want: Want,
    waker: W,
    trying: bool,
}

#[derive(Debug)]
struct Line<W> {
    waiting: BTreeMap<Ticket, Waiter<W>>,
    wants: BTreeMap<Want, usize>,
}

impl<W: Clone> Line<W> {
    fn first(&self, want: &Want) -> Option<Ticket> {
        self.waiting.iter().find(|(_, waiter)| waiter.want == *want).map(|(ticket, _)| *ticket)
    }

    /// The first that waits and may use it, which tries from now on.
    fn wake(&mut self, useful: impl Fn(&Want) -> bool) -> Option<W> {
        let idle = |waiter: &&mut Waiter<W>| !waiter.trying && useful(&waiter.want);
        let mut line = self.waiting.values_mut();
        let next = if planted::is(Bug::Newest) { line.rfind(idle) } else { line.find(idle) }?;
        next.trying = true;
        Some(next.waker.clone())
    }
}

/// All queues of an edge. `W` wakes a waiter.
#[derive(Debug)]
pub struct Queues<W> {
    bounds: Bounds,
    next: Ticket,
    waiting: usize,
    lines: BTreeMap<Service, Line<W>>,
}

impl<W: Clone> Queues<W> {
    /// Queues in which nobody waits.
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, next: 0, waiting: 0, lines: BTreeMap::new() }
    }

    /// How many wait, in all.
    pub fn len(&self) -> usize {
        self.waiting
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.waiting == 0
    }

    /// How many wait for a service.
    pub fn waiting(&self, service: Service) -> usize {
        self.lines.get(&service).map_or(0, |line| line.waiting.len())
    }

    /// The ports of an app for which somebody waits.
    pub fn ports(&self, app: AppId) -> Vec<u16> {
        self.lines.range((app, 0)..=(app, u16::MAX)).map(|((_, port), _)| *port).collect()
    }

    /// Whether somebody waits for the same: then a newcomer goes behind them.
    pub fn is_ahead(&self, service: Service, want: &Want) -> bool {
        self.lines.get(&service).is_some_and(|line| line.wants.contains_key(want))
    }

    /// A place at the end.
    ///
    /// # Errors
    /// [`Crowded`] when the service's or the edge's bound is reached.
    pub fn join(&mut self, service: Service, want: Want, waker: W) -> Result<Ticket, Crowded> {
        if self.waiting >= self.bounds.all || self.waiting(service) >= self.bounds.service {
            return Err(Crowded);
        }
        let line = self
            .lines
            .entry(service)
            .or_insert_with(|| Line { waiting: BTreeMap::new(), wants: BTreeMap::new() });
        let ticket = self.next;
        self.next += 1;
        self.waiting += 1;
        *line.wants.entry(want.clone()).or_default() += 1;
        line.waiting.insert(ticket, Waiter { want, waker, trying: false });
        Ok(ticket)
    }

    /// There may be room for one whose want is `useful`: who tries now, if anybody waits for it.
    pub fn room(&mut self, service: Service, useful: impl Fn(&Want) -> bool) -> Option<W> {
        self.lines.get_mut(&service)?.wake(useful)
    }

    /// Whether this one is the first of its want, so that it tries by itself every [`POLL`].
    pub fn is_first(&self, service: Service, ticket: Ticket) -> bool {
        self.lines.get(&service).is_some_and(|line| {
            line.waiting.get(&ticket).is_some_and(|waiter| line.first(&waiter.want) == Some(ticket))
        })
    }

    /// It tries by itself.
    pub fn tries(&mut self, service: Service, ticket: Ticket) {
        self.set(service, ticket, true);
    }

    /// It found no room, and waits on at its place.
    pub fn again(&mut self, service: Service, ticket: Ticket) {
        self.set(service, ticket, false);
    }

    fn set(&mut self, service: Service, ticket: Ticket, trying: bool) {
        let line = self.lines.get_mut(&service);
        if let Some(waiter) = line.and_then(|line| line.waiting.get_mut(&ticket)) {
            waiter.trying = trying;
        }
    }

    /// It is served, or gave up. Who wants the same tries next: where one found room there may be
    /// more, and somebody has to be the first.
    pub fn leave(&mut self, service: Service, ticket: Ticket) -> Option<W> {
        let line = self.lines.get_mut(&service)?;
        let Waiter { want, .. } = line.waiting.remove(&ticket)?;
        self.waiting -= 1;
        let next = line.wake(|other| *other == want);
        if let Some(count) = line.wants.get_mut(&want) {
            *count -= 1;
            if *count == 0 {
                line.wants.remove(&want);
            }
        }
        if line.waiting.is_empty() {
            self.lines.remove(&service);
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use ulid::Ulid;

    const WEB: Service = (AppId(Ulid(1)), 80);

    fn only(id: u64) -> Want {
        Want { machine: Some(MachineId::from_bits(id)), ..Want::default() }
    }

    fn queues() -> Queues<&'static str> {
        Queues::new(Bounds { service: 3, all: 4 })
    }

    #[test]
    fn lb_4_the_first_to_come_is_the_first_to_try() {
        let mut queues = queues();
        let first = queues.join(WEB, Want::default(), "first").unwrap();
        let second = queues.join(WEB, Want::default(), "second").unwrap();
        assert!(queues.is_first(WEB, first) && !queues.is_first(WEB, second));
        assert_eq!(queues.room(WEB, |_| true), Some("first"));
        assert_eq!(queues.room(WEB, |_| true), Some("second"), "room for another one meanwhile");
        assert_eq!(queues.room(WEB, |_| true), None, "both try");
        queues.again(WEB, first);
        queues.again(WEB, second);
        assert_eq!(queues.room(WEB, |_| true), Some("first"), "it kept its place");
        assert_eq!(queues.leave(WEB, first), Some("second"), "where one found room there may be more");
        assert!(queues.is_first(WEB, second));
        assert_eq!((queues.leave(WEB, second), queues.is_empty()), (None, true));
        assert_eq!(queues.leave(WEB, second), None, "a ticket that left stays gone");
    }

    #[test]
    fn lb_4_a_newcomer_waits_behind_those_who_want_the_same_and_behind_no_others() {
        let mut queues = queues();
        queues.join(WEB, only(7), "asked").unwrap();
        assert!(queues.is_ahead(WEB, &only(7)));
        assert!(!queues.is_ahead(WEB, &Want::default()), "one full Machine stops nobody else");
        assert!(!queues.is_ahead((WEB.0, 443), &only(7)));
        let regions = Want { regions: vec!["eu".into()], ..Want::default() };
        let eu = |name: &str, region: RegionCode| name == "eu" && region.as_str() == "lhr";
        let takes =
            |want: &Want, region: &str| want.takes(MachineId::from_bits(1), region.parse().unwrap(), eu);
        assert!(takes(&regions, "lhr") && !takes(&regions, "nrt"));
        assert!(!takes(&only(7), "lhr") && takes(&Want::default(), "nrt"));
    }

    #[test]
    fn lb_4_one_that_may_not_go_back_to_a_machine_does_not_stop_those_who_may_go_there() {
        let (one, two) = (MachineId::from_bits(1), MachineId::from_bits(2));
        let constraint = Constraint { exclude: vec![two, one], ..Constraint::default() };
        let elsewhere = Want::new(&constraint, &[two]);
        assert_eq!(
            elsewhere,
            Want { never: vec![one], ..Want::default() },
            "it may go back to one that was full"
        );
        let mut queues = queues();
        queues.join(WEB, elsewhere, "elsewhere").unwrap();
        assert!(!queues.is_ahead(WEB, &Want::default()));
        queues.join(WEB, Want::default(), "any").unwrap();
        let at = |machine| move |want: &Want| want.takes(machine, "iad".parse().unwrap(), |_, _| false);
        assert_eq!((queues.room(WEB, at(one)), queues.room(WEB, at(two))), (Some("any"), Some("elsewhere")));
    }

    #[test]
    fn lb_4_the_queue_is_bounded_for_a_service_and_in_all() {
        let mut queues = queues();
        let tickets: Vec<_> = (0..3).map(|_| queues.join(WEB, Want::default(), "web").unwrap()).collect();
        assert_eq!(queues.join(WEB, Want::default(), "more"), Err(Crowded));
        queues.join((WEB.0, 443), Want::default(), "tls").unwrap();
        assert_eq!(queues.join((WEB.0, 8080), Want::default(), "more"), Err(Crowded), "in all");
        assert_eq!((queues.ports(WEB.0), queues.ports(AppId(Ulid(2)))), (vec![80, 443], vec![]));
        queues.leave(WEB, tickets[1]);
        assert!(queues.join((WEB.0, 8080), Want::default(), "now").is_ok());
    }

    #[derive(Debug, Clone)]
    enum Step {
        Join(u8),
        Room,
        Again(usize),
        Leave(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0u8..3).prop_map(Step::Join),
            Just(Step::Room),
            (0usize..8).prop_map(Step::Again),
            (0usize..8).prop_map(Step::Leave),
        ]
    }

    proptest! {
        #[test]
        fn each_want_is_served_in_order_whatever_happens(steps in proptest::collection::vec(step(), 0..60)) {
            let mut queues: Queues<u64> = Queues::new(Bounds { service: 6, all: 6 });
            // Who waits: ticket, want, whether it tries. The waker is the ticket itself.
            let mut model: Vec<(Ticket, u8, bool)> = Vec::new();
            let want = |n: u8| if n == 0 { Want::default() } else { only(n.into()) };
            for step in steps {
                let mut woken = None;
                match step {
                    Step::Join(n) => {
                        let next = queues.next;
                        let joined = queues.join(WEB, want(n), next);
                        prop_assert_eq!(joined.is_ok(), model.len() < 6);
                        model.extend(joined.ok().map(|ticket| (ticket, n, false)));
                    }
                    Step::Room => woken = Some((queues.room(WEB, |_| true), None)),
                    Step::Again(i) => if let Some((ticket, _, trying)) = model.get_mut(i) {
                        *trying = false;
                        queues.again(WEB, *ticket);
                    },
                    Step::Leave(i) => if i < model.len() {
                        let (ticket, n, _) = model.remove(i);
                        woken = Some((queues.leave(WEB, ticket), Some(n)));
                    },
                }
                if let Some((woken, only)) = woken {
                    let next = model.iter_mut().find(|(_, n, trying)| !trying && only.is_none_or(|m| m == *n));
                    prop_assert_eq!(woken, next.as_ref().map(|next| next.0), "the oldest that waits");
                    if let Some(next) = next { next.2 = true }
                }
                prop_assert_eq!(queues.len(), model.len());
                for n in 0..3 {
                    let first = model.iter().find(|(_, m, _)| *m == n).map(|(ticket, ..)| *ticket);
                    prop_assert_eq!(queues.is_ahead(WEB, &want(n)), first.is_some());
                    for (ticket, ..) in model.iter().filter(|(_, m, _)| *m == n) {
                        prop_assert_eq!(queues.is_first(WEB, *ticket), Some(*ticket) == first);
                    }
                }
            }
        }
    }
}
