//! A node's last word on its own Machines: it knows what they have in flight, and what they took.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use skein_cluster::{LocalMachine, Reader, clock};
use skein_core::MachineId;
use skein_core::autostop::stop::{self, Own, Stays, may_rest};
use skein_core::autostop::{Rest, starts};
use skein_core::machine::MachineState;

use super::was_away;
use crate::error::MachineError;
use crate::machines::Machines;

/// Why a Machine that traffic wants was not started.
#[derive(Debug, thiserror::Error)]
pub enum NotWoken {
    /// It is not of this node.
    #[error("there is no Machine {0} on this node")]
    Unknown(MachineId),
    /// Its configuration or its operator does not want it.
    #[error("Machine {0} may not be started by traffic: auto_start_machines is off, or it is cordoned")]
    Off(MachineId),
    /// Its state does not allow it.
    #[error("Machine {0} is {1}, which no start follows")]
    State(MachineId, MachineState),
    /// The start was refused.
    #[error(transparent)]
    Machine(#[from] MachineError),
}

/// Why a Machine that seemed to be one too many stays up.
#[derive(Debug, thiserror::Error)]
pub enum NotRested {
    /// It is needed.
    #[error(transparent)]
    Stays(#[from] Stays),
    /// The stop was refused.
    #[error(transparent)]
    Machine(#[from] MachineError),
}

/// What was seen of a Machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Look {
    /// What it had taken, all services together.
    taken: u32,
    /// Whether something was in flight.
    busy: bool,
    /// Since when it took nothing and had nothing in flight.
    quiet_since: Instant,
}

#[derive(Debug, Default)]
struct Looks {
    last: Option<Instant>,
    machines: BTreeMap<MachineId, Look>,
}

/// Starts and stops the Machines of this node for autostart and autostop. A clone is the same.
#[derive(Debug, Clone)]
pub struct Owner {
    machines: Machines,
    reader: Reader,
    interval: Duration,
    looks: Arc<Mutex<Looks>>,
}

impl Owner {
    /// Of these Machines; one that ran or was used within `interval` stays up.
    pub fn new(machines: Machines, reader: Reader, interval: Duration) -> Self {
        Self { machines, reader, interval, looks: Arc::default() }
    }

    /// Starts a Machine because traffic needs it (SPEC AUTO-2, AUTO-3). One that runs, or is about to, is fine.
    ///
    /// # Errors
    /// [`NotWoken`].
    pub async fn start(&self, id: MachineId) -> Result<(), NotWoken> {
        let local = self.machines.local(id).ok_or(NotWoken::Unknown(id))?;
        if local.cordoned || !starts(&local.config) {
            return Err(NotWoken::Off(id));
        }
        #[expect(clippy::wildcard_enum_match_arm, reason = "from no other state does traffic start it")]
        match local.state {
            MachineState::Started | MachineState::Starting => Ok(()),
            MachineState::Stopped | MachineState::Suspended => {
                tracing::info!(machine = %id, "traffic starts a Machine");
                self.machines.start_machine(id).await?;
                Ok(())
            }
            state => Err(NotWoken::State(id, state)),
        }
    }

    /// Brings a Machine to rest that seems to be one too many (SPEC AUTO-1), unless it is needed.
    ///
    /// # Errors
    /// [`NotRested`].
    pub async fn rest(&self, id: MachineId, asked: Rest) -> Result<(), NotRested> {
        let now = clock::now();
        let local = self.machines.local(id).filter(|local| local.state == MachineState::Started);
        let local = local.ok_or(Stays::NotRunning)?;
        let snapshot = self.reader.load();
        let app = snapshot.apps.get(&local.app).ok_or(Stays::NotRunning)?;
        let own = self.own(&local, now);
        let groups = stop::running(app, self.machines.region(), &snapshot, clock::ms(now));
        let running = groups.get(&local.config.process_group()).ok_or(Stays::NotRunning)?;
        let rest = may_rest(id, running, own)?.min(asked);
        tracing::info!(machine = %id, ?rest, "an idle Machine comes to rest");
        match rest {
            Rest::Suspend => match self.machines.suspend(id).await {
                Ok(_) => return Ok(()),
                // "suspends Machines (if possible)"
                Err(error) => {
                    tracing::debug!(machine = %id, %error, "it is stopped, as it can't be suspended")
                }
            },
            Rest::Stop => {}
        }
        self.machines.stop(id, None, None).await?;
        Ok(())
    }

    fn own(&self, local: &LocalMachine, now: Instant) -> Own {
        let long = |since: Instant| now.saturating_duration_since(since) >= self.interval;
        let look = self.with(|looks| looks.see(local, now));
        Own { in_flight: in_flight(local), settled: long(local.since), quiet: long(look.quiet_since) }
    }

    /// Takes note of what all Machines took; `false` when this node was away since the last look, so that
    /// nothing it believes is a reason to stop anything.
    pub(super) fn look(&self, now: Instant) -> bool {
        let locals = self.machines.locals();
        self.with(|looks| {
            let away = was_away(looks.last.replace(now), now, self.interval);
            looks.machines.retain(|id, _| locals.contains_key(id) && !away);
            for local in locals.values() {
                looks.see(local, now);
            }
            !away
        })
    }

    fn with<T>(&self, work: impl FnOnce(&mut Looks) -> T) -> T {
        work(&mut self.looks.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Looks {
    fn see(&mut self, local: &LocalMachine, now: Instant) -> Look {
        let taken = local.slots.iter().fold(0, |sum: u32, slots| sum.wrapping_add(slots.taken()));
        let busy = in_flight(local) > 0;
        let fresh = Look { taken, busy, quiet_since: now };
        let look = self.machines.entry(local.id).or_insert(fresh);
        // What was in flight at the last look may have ended a moment ago.
        if look.taken != taken || look.busy || busy {
            *look = fresh;
        }
        *look
    }
}

fn in_flight(local: &LocalMachine) -> u32 {
    local.slots.iter().map(|slots| slots.in_flight()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use skein_cluster::Upstream;
    use skein_core::AppId;
    use skein_core::load::Slots;
    use ulid::Ulid;

    #[test]
    fn a_machine_is_quiet_only_when_nothing_came_between_two_looks() {
        let slots: Arc<Slots> = Arc::default();
        let begin = clock::now();
        let local = LocalMachine {
            id: MachineId::from_bits(1),
            app: AppId(Ulid(1)),
            config: Arc::default(),
            state: MachineState::Started,
            healthy: true,
            cordoned: false,
            since: begin,
            upstream: Upstream::External(([127, 0, 0, 1], 1).into()),
            slots: vec![Arc::clone(&slots)],
        };
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut looks = Looks::default();
        let mut quiet_since = |seconds| looks.see(&local, at(seconds)).quiet_since;
        assert_eq!(quiet_since(0), at(0));
        assert_eq!(quiet_since(10), at(0));
        drop(slots.try_acquire(None));
        assert_eq!(quiet_since(20), at(20), "it was short, and over at both looks");
        let open = slots.try_acquire(None);
        assert_eq!(quiet_since(30), at(30));
        assert_eq!(quiet_since(40), at(40), "it goes on");
        drop(open);
        assert_eq!(quiet_since(50), at(50), "nobody knows when it ended");
        assert_eq!(quiet_since(60), at(50));
    }

    #[test]
    fn a_pause_of_the_process_is_noticed() {
        let (begin, interval) = (clock::now(), Duration::from_secs(10));
        let away = |seconds| was_away(Some(begin), begin + Duration::from_secs(seconds), interval);
        assert!(!was_away(None, begin, interval) && !away(10) && !away(30));
        assert!(away(31) && away(86_400));
    }
}
