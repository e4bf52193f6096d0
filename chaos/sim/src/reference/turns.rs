//! Whose turn it was at a full Machine (SPEC LB-4), and how long what it had free was left.

use std::collections::BTreeMap;

use skein_core::turns::{ASKED, OFFER};
use skein_core::{MachineId, NodeNumber};

use super::history::History;
use super::{CONFIGS, LAG, Reference, Status, Story, Waiter};
use crate::agenda::{Micros, micros};

/// What was said at one Machine.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// Slots that are kept: for whom, from when on.
    kept: Vec<(NodeNumber, Micros)>,
    /// When slots were last kept for somebody.
    last: Option<Micros>,
    /// Edges that wait: when each last asked, and how many others were served since it began.
    waits: BTreeMap<NodeNumber, (Micros, u32)>,
    /// Whether each slot was taken or kept.
    claimed: History<bool>,
}

impl Turns {
    /// What is kept no longer ends; `free` are the slots that are not taken.
    fn expire(&mut self, now: Micros, free: u32) {
        while let Some((_, at)) = self.kept.first().filter(|(_, at)| at + micros(OFFER) <= now).copied() {
            self.kept.remove(0);
            self.claimed.set(at + micros(OFFER), free as usize <= self.kept.len());
        }
        self.waits.retain(|_, (asked, _)| *asked + micros(ASKED) >= now);
    }

    /// Slots that are kept for other edges.
    fn for_others(&self, edge: NodeNumber) -> u32 {
        self.kept.iter().filter(|(to, _)| *to != edge).count() as u32
    }

    /// After a change.
    fn note(&mut self, now: Micros, free: u32) {
        self.claimed.set(now, free as usize <= self.kept.len());
    }

    pub(super) fn kept_since(&self, from: Micros) -> bool {
        self.last.is_some_and(|last| last + micros(OFFER) >= from)
    }
}

impl Reference {
    /// A Machine keeps a free slot for an edge.
    pub fn offers(&mut self, now: Micros, machine: MachineId, to: NodeNumber) {
        let free = self.free(machine);
        let turns = self.turns.entry(machine).or_default();
        turns.expire(now, free);
        turns.kept.push((to, now));
        turns.last = Some(now);
        turns.note(now, free);
    }

    /// Slots of a Machine that are not taken.
    fn free(&self, machine: MachineId) -> u32 {
        let story = self.machines.get(&machine);
        story.map_or(0, |story| story.hard.unwrap_or(u32::MAX).saturating_sub(story.in_flight))
    }

    /// What is in flight at a Machine changed; before it, `free` slots were not taken.
    pub(super) fn counted(&mut self, now: Micros, machine: MachineId, free: u32) {
        let after = self.free(machine);
        let turns = self.turns.entry(machine).or_default();
        turns.expire(now, free);
        turns.note(now, after);
    }

    /// An edge has nothing that waits for a Machine.
    pub fn withdraws(&mut self, now: Micros, machine: MachineId, edge: NodeNumber) {
        let free = self.free(machine);
        let turns = self.turns.entry(machine).or_default();
        turns.expire(now, free);
        turns.kept.retain(|(to, _)| *to != edge);
        turns.waits.remove(&edge);
        turns.note(now, free);
    }

    /// A Machine takes a request of an edge, which is counted already ([`Self::begins`]): how many slots
    /// were free, how many of them were kept for other edges, and the most that were served while an edge
    /// waited, with how many edges did.
    pub fn takes(&mut self, now: Micros, machine: MachineId, edge: NodeNumber) -> Taken {
        let limited = self.machines.get(&machine).is_some_and(|story| story.hard.is_some());
        let now_free = self.free(machine);
        let free = limited.then_some(now_free + 1);
        let turns = self.turns.entry(machine).or_default();
        turns.expire(now, now_free + 1);
        let own = turns.kept.iter().position(|(to, _)| *to == edge);
        let others = if own.is_some() { 0 } else { turns.for_others(edge) };
        if let Some(own) = own {
            turns.kept.remove(own);
        }
        turns.note(now, now_free);
        turns.waits.remove(&edge);
        let edges = turns.waits.len() + 1;
        turns.waits.values_mut().for_each(|(_, served)| *served += 1);
        let starved = turns.waits.iter().map(|(edge, (_, served))| (*served, *edge)).max();
        Taken { free, others, edges, starved }
    }

    /// A Machine is full for an edge: how many slots are free, and how many of them are kept for others.
    pub fn refuses(&mut self, now: Micros, machine: MachineId, edge: NodeNumber) -> (u32, u32) {
        let free = self.free(machine);
        let turns = self.turns.entry(machine).or_default();
        turns.expire(now, free);
        turns.waits.entry(edge).or_insert((now, 0)).0 = now;
        (free, turns.for_others(edge))
    }

    /// A Machine's node begins anew, and with it all turns.
    pub fn forget_turns(&mut self, machine: MachineId) {
        self.turns.remove(&machine);
    }

    /// The longest that a slot of a Machine stood free that the first of a line could have had, when
    /// nothing was in trouble; and how long it may have.
    pub(super) fn left_free(
        &mut self,
        edge: NodeNumber,
        waiter: &Waiter,
        now: Micros,
        failed: impl Fn(MachineId) -> bool,
        within: impl Fn(&str, skein_core::RegionCode) -> bool,
    ) -> Option<(Micros, MachineId)> {
        let first = waiter.first?;
        if self.broken.ever(first.saturating_sub(CONFIGS), now, |broken| broken)
            || self.node_was(edge, first.saturating_sub(CONFIGS), now, |status| !status.runs)
        {
            return None;
        }
        for machine in self.turns.keys().copied().collect::<Vec<_>>() {
            let free = self.free(machine);
            self.turns.entry(machine).or_default().expire(now, free);
        }
        let meant = self.machines.iter().filter(|(id, story)| {
            story.app == waiter.app
                && waiter.wants.machine.is_none_or(|machine| machine == **id)
                && (waiter.wants.regions.is_empty()
                    || waiter.wants.regions.iter().any(|name| within(name, story.region)))
                && !failed(**id)
        });
        meant.map(|(id, story)| (self.longest_free(*id, story, first, now), *id)).max()
    }

    fn longest_free(&self, id: MachineId, story: &Story, from: Micros, to: Micros) -> Micros {
        let Some(made) = story.status.begin() else { return 0 };
        let from = from.max(made + CONFIGS);
        let routable = |s: Status| s.exists && s.started && s.healthy && !s.cordoned;
        // Whoever waits hears a moment later that it can be had.
        let late = |(start, end): (Micros, Micros)| (start, end.saturating_add(LAG));
        let away = story.status.spans(|status| !routable(status)).map(late);
        let drains = self
            .nodes
            .get(&story.node)
            .into_iter()
            .flat_map(|history| history.spans(|status| status.draining || !status.answers).map(late));
        // A slot that is kept is another's until it is kept no longer.
        let full = self.turns.get(&id).into_iter().flat_map(|turns| turns.claimed.spans(|claimed| claimed));
        let mut closed: Vec<(Micros, Micros)> = full.chain(away).chain(drains).collect();
        closed.sort_unstable();
        let (mut open, mut longest) = (from, 0);
        for (start, end) in closed {
            longest = longest.max(start.min(to).saturating_sub(open));
            open = open.max(end);
        }
        longest.max(to.saturating_sub(open))
    }
}

/// What was true when a Machine took a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// Slots that were free; `None` without a limit.
    pub free: Option<u32>,
    /// Those that were kept for other edges, when none was kept for this one.
    pub others: u32,
    /// Edges that wanted one.
    pub edges: usize,
    /// The edge that has seen most others served while it waited, and how many.
    pub starved: Option<(u32, NodeNumber)>,
}
