//! Looks at what nodes believe, beside what is true.

use std::time::Duration;

use skein_core::NodeNumber;

use super::{Event, HEALED, LED, Lead, World};
use crate::agenda::{MS, Micros, SECOND, micros};
use crate::invariants;
use crate::node::view;
use crate::reference::LAG;

/// How often a leader is looked for.
const LOOK: Micros = 50 * MS;

impl World {
    /// Looks at how old a node's facts are.
    pub(super) fn see_ages(&mut self, number: NodeNumber) {
        let (now, ms) = (self.now(), self.clock.ms());
        let Some(node) = self.nodes.get(&number) else { return };
        let ages: Vec<_> =
            node.snapshot.nodes.iter().map(|(of, known)| (*of, known.confirmed.age(ms))).collect();
        let calm = self.reference.calm(now);
        let awake = now > node.woke + 2 * SECOND;
        for (of, age) in ages {
            let before = self.confirmed.get(&(number, of)).map(|at| Duration::from_micros(now - at));
            let verdict = invariants::ages_are_true(number, of, age, before, calm || (awake && of == number));
            self.judge(verdict);
            if age < Duration::MAX {
                // Ages are whole milliseconds: the earliest moment that this one may mean.
                let at = now.saturating_sub(micros(age) + MS);
                self.confirmed.insert((number, of), at);
            }
        }
    }

    /// After healing: waits for a leader that a majority follows, and [`HEALED`] later looks whether all
    /// nodes have what it has. One that all voters follow must stay; before, one that still hears
    /// nobody may take its place, and the time begins anew.
    pub(super) fn see_leader(&mut self) {
        let now = self.now();
        let healed = self.healed.unwrap_or(now);
        let (majority, all) = (self.registry.followed(now, false), self.registry.followed(now, true));
        let before = self.lead.filter(|lead| majority.is_none_or(|now| now == lead.who));
        if let Some(lost) = self.lead.filter(|lead| lead.by_all && before.is_none()) {
            self.judge(invariants::leader_stays(lost.who, majority));
        }
        let lead = before.or(majority.map(|who| Lead { who, since: now, by_all: false }));
        let lead = lead.map(|lead| Lead { by_all: lead.by_all || all == Some(lead.who), ..lead });
        if lead != self.lead {
            let whom = lead.map(|lead| (lead.who.0, if lead.by_all { "all" } else { "a majority" }));
            whom.into_iter().for_each(|(who, of)| self.note(format_args!("{of} of the voters follow {who}")));
            self.lead = lead;
        }
        match lead {
            Some(lead) if now >= lead.since + HEALED => self.see_equal(true),
            Some(_) => self.agenda.after(LOOK, Event::SeeLeader),
            None => {
                self.judge(invariants::led_in_time(now - healed, LED));
                self.agenda.after(LOOK, Event::SeeLeader);
            }
        }
    }

    pub(super) fn see_equal(&mut self, apps: bool) {
        let machines = self.nodes.values().flat_map(|node| node.machines.values());
        if machines.map(|machine| machine.since).max().is_some_and(|changed| changed + LAG > self.now()) {
            // Autostop or traffic changed one a moment ago.
            self.agenda.after(LAG, if apps { Event::SeeLeader } else { Event::SeeEqual });
            return;
        }
        let mut truth = invariants::View::default();
        for node in self.nodes.values() {
            let claim = |machine: &crate::node::Machine| {
                let record = node.record(machine);
                let load = skein_core::load::LoadClass::BelowSoft;
                format!(
                    "{:?} healthy {} cordoned {} {load:?} {}",
                    record.state, record.healthy, record.cordoned, record.version
                )
            };
            let machines = node.machines.values().map(|machine| (machine.id, claim(machine)));
            truth.nodes.insert(node.number, (true, node.drains(), machines.collect()));
        }
        if apps {
            let states = self.places.iter().filter_map(|(number, _)| self.registry.state(*number));
            let state = states.max_by_key(|(applied, _)| *applied).map(|(_, state)| state);
            for app in state.iter().flat_map(|state| state.apps()) {
                let machines = self.nodes.values().flat_map(|node| {
                    let mine = node.machines.values().filter(|machine| machine.app == app.id);
                    mine.map(|machine| (machine.id, node.number))
                });
                let mut machines: Vec<_> = machines.collect();
                machines.sort_unstable();
                truth.apps.insert(app.id, machines);
            }
        }
        let views = self.nodes.values().map(|node| {
            let mut view = view(&node.snapshot, false);
            if !apps {
                view.apps.clear();
            }
            (node.number, view)
        });
        let verdict = invariants::views_are_equal(&views.collect(), &truth);
        self.note(format_args!("views are compared{}", if apps { ", the registry's too" } else { "" }));
        self.judge(verdict);
    }
}
