//! How much runs beside how much is needed (SPEC AUTO-1, AUTO-2).

use skein_core::{AppId, MachineId, RegionCode};

use super::{LAG, Reference, Status, Story};
use crate::agenda::{Micros, SECOND};
use crate::request::Asked;

/// An edge's word stands so long, and is on its way a while.
const STANDS: Micros = 3 * SECOND + LAG;

fn runs(status: Status) -> bool {
    status.exists && status.started && status.healthy && !status.cordoned
}

impl Reference {
    /// Somebody changes Machines or nodes by hand.
    pub fn meddles(&mut self, now: Micros) {
        self.meddled = now;
    }

    /// Whether all nodes must know of all Machines: nothing is in trouble, and nobody changed anything
    /// lately.
    pub fn settled(&self, now: Micros) -> bool {
        self.calm(now) && now > self.meddled + STANDS
    }

    /// A request is held by an edge, or no longer is; one that is redirected may be for any app.
    pub fn holds(&mut self, now: Micros, asked: &Asked, more: bool) {
        let app = asked.instruction.is_none().then_some(asked.app);
        let held = self.held.entry(app).or_default();
        let last = held.last().map_or(0, |(_, count)| *count);
        held.push((now, if more { last + 1 } else { last.saturating_sub(1) }));
        let old = held.iter().take_while(|(at, _)| at + STANDS < now).count();
        held.drain(..old.saturating_sub(1));
    }

    /// The most requests for an app that were held at once lately.
    fn load(&self, app: AppId) -> u32 {
        let most =
            |app| self.held.get(&app).into_iter().flatten().map(|(_, count)| *count).max().unwrap_or(0);
        most(Some(app)) + most(None)
    }

    fn inside(&self, app: AppId, region: RegionCode) -> impl Iterator<Item = (&MachineId, &Story)> {
        self.machines.iter().filter(move |(_, story)| story.app == app && story.region == region)
    }

    /// How many Machines of an app take requests in a region.
    pub fn running(&self, app: AppId, region: RegionCode) -> u32 {
        let drains = |story: &Story| {
            self.nodes
                .get(&story.node)
                .and_then(super::history::History::now)
                .is_none_or(|status| status.draining)
        };
        let all = self.inside(app, region).filter(|(_, story)| !drains(story));
        all.filter(|(_, story)| story.status.now().is_some_and(runs)).count() as u32
    }

    /// A node that decides starts a Machine: what those that run, or were started for it, can take, and
    /// what there was to take lately. `None` when it may not be known.
    pub fn starts(
        &mut self,
        now: Micros,
        app: AppId,
        region: RegionCode,
        machine: MachineId,
    ) -> Option<(u32, u32)> {
        let load = self.load(app);
        let starting: Vec<MachineId> =
            self.started.iter().filter(|(_, at)| at + STANDS > now).map(|(id, _)| *id).collect();
        let up = self.inside(app, region).filter(|(id, story)| {
            **id != machine && (starting.contains(id) || story.status.now().is_some_and(runs))
        });
        let room: u32 = up.map(|(_, story)| story.soft.max(1)).sum();
        let pressed = !starting.iter().any(|id| self.inside(app, region).any(|(other, _)| other == id));
        self.started.retain(|(_, at)| at + STANDS > now);
        self.started.push((machine, now));
        // When all that run say that they are at their soft limit, one is started in any case.
        (self.settled(now) && !pressed).then_some((room, load))
    }
}
