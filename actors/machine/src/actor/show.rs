//! What the actor shows to others.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;
use skein_cluster::{LocalMachine, Upstream, clock};
use skein_core::load::Slots;
use skein_core::machine::{MachineEvent, MachineState};

use super::{Beginning, State};
use crate::board::Shown;
use crate::life::Source;
use crate::run::Run;
use crate::stored::View;

impl State {
    /// Notes an event; the caller publishes and saves.
    pub(super) fn note(&mut self, kind: &str, source: Source, request: Option<Value>) {
        let event = MachineEvent {
            id: self.shared.version().to_string(),
            kind: kind.to_owned(),
            status: self.stored.state.to_string(),
            source: match source {
                Source::User => "user".to_owned(),
                Source::Node => "flyd".to_owned(),
            },
            timestamp: clock::unix_ms(),
            request,
        };
        self.stored.note(event);
        self.saver.dirty();
    }

    /// Shows the Machine as it is.
    pub(super) fn publish(&mut self) {
        let healthy = self.run.as_ref().is_none_or(Run::healthy);
        self.measure(healthy);
        let view = View {
            stored: self.stored.clone(),
            healthy: self.run.as_ref().is_none_or(Run::said_healthy),
            checks: self.run.as_ref().map(Run::check_statuses).unwrap_or_default(),
            error: self.core.error().map(str::to_owned),
        };
        let local = (self.stored.state != MachineState::Destroyed).then(|| self.local(healthy));
        let entry = Arc::clone(&self.entry);
        self.shared.board.publish(&entry, Shown { view, local });
    }

    /// Learns how long it took to start or to go on, once that is over.
    fn measure(&mut self, healthy: bool) {
        if self.stored.state == MachineState::Started
            && healthy
            && let Some((what, since)) = self.beginning.take()
        {
            let took = clock::now().saturating_duration_since(since).as_millis();
            let took = u32::try_from(took).unwrap_or(u32::MAX).max(1);
            match what {
                Beginning::Start => self.stored.start_ms = took,
                Beginning::Resume => self.stored.resume_ms = took,
            }
            self.saver.dirty();
        }
    }

    fn local(&self, healthy: bool) -> LocalMachine {
        let before = self.shared.board.local(self.stored.id);
        let (state, cordoned) = (self.stored.state, self.stored.cordoned);
        let since = before
            .as_ref()
            .filter(|b| (b.state, b.healthy, b.cordoned) == (state, healthy, cordoned))
            .map_or_else(clock::now, |before| before.since);
        LocalMachine {
            id: self.stored.id,
            app: self.stored.app,
            config: Arc::clone(&self.stored.config),
            state,
            healthy,
            cordoned,
            since,
            upstream: self
                .run
                .as_ref()
                .and_then(|run| run.upstream())
                .unwrap_or_else(|| Upstream::Loopback(BTreeMap::new())),
            slots: self.slots(),
        }
    }

    /// The slots of the services, those that were published before where the service is the same: a
    /// request in flight stays counted.
    pub(super) fn slots(&self) -> Vec<Arc<Slots>> {
        let before = self.shared.board.local(self.stored.id);
        let mut known: Vec<_> = before
            .iter()
            .flat_map(|before| before.config.services.iter().zip(&before.slots))
            .map(|(service, slots)| ((service.internal_port, service.is_tcp()), Arc::clone(slots)))
            .collect();
        let mut slots_of = |key: (u16, bool)| {
            let index = known.iter().position(|(known, _)| *known == key)?;
            Some(known.swap_remove(index).1)
        };
        let services = &self.stored.config.services;
        services
            .iter()
            .map(|service| slots_of((service.internal_port, service.is_tcp())).unwrap_or_default())
            .collect()
    }
}
