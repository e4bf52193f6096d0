//! Leases of Machines: who may change a Machine, until when (`COMPAT` 3.1, P1).
//!
//! They are held by the Machine's node, in memory: a node that restarts has none, as if all had
//! expired.

use std::collections::BTreeMap;

use serde::Serialize;
use skein_core::MachineId;

/// The longest lease, in seconds.
const MAX_TTL: u64 = 24 * 3600;

/// A lease, as the API shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Lease {
    /// What its holder shows to change the Machine.
    pub(crate) nonce: String,
    /// Seconds since 1970.
    pub(crate) expires_at: u64,
    /// The holder's token.
    pub(crate) owner: String,
    /// The holder's words.
    pub(crate) description: String,
    /// The Machine's version when it was taken.
    pub(crate) version: String,
}

/// Why a lease stands in the way; the caller may wait for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LeaseError {
    /// Somebody else holds it.
    #[error("lease currently held by another caller, expires at {0} (seconds since 1970)")]
    Held(u64),
    /// There is none.
    #[error("lease not found")]
    None,
}

/// All leases of a node.
#[derive(Debug, Default)]
pub(crate) struct LeaseBook(BTreeMap<MachineId, Lease>);

impl LeaseBook {
    /// The lease of a Machine that has not expired.
    pub(crate) fn get(&mut self, machine: MachineId, now: u64) -> Option<&Lease> {
        // Whole seconds: to the end of the last one, else a lease of one second could be none.
        self.0.retain(|_, lease| lease.expires_at >= now);
        self.0.get(&machine)
    }

    /// Whether a change with that nonce may go on: without a lease always, under one with its nonce.
    pub(crate) fn allows(
        &mut self,
        machine: MachineId,
        nonce: Option<&str>,
        now: u64,
    ) -> Result<(), LeaseError> {
        match self.get(machine, now) {
            Some(lease) if nonce != Some(lease.nonce.as_str()) => Err(LeaseError::Held(lease.expires_at)),
            _ => Ok(()),
        }
    }

    /// Takes a lease for `ttl` seconds, or prolongs the one whose nonce is given.
    pub(crate) fn take(
        &mut self,
        machine: MachineId,
        nonce: Option<&str>,
        ttl: u64,
        now: u64,
        new: impl FnOnce() -> Lease,
    ) -> Result<Lease, LeaseError> {
        self.allows(machine, nonce, now)?;
        let lease = self.0.entry(machine).or_insert_with(new);
        lease.expires_at = now + ttl.clamp(1, MAX_TTL);
        Ok(lease.clone())
    }

    /// Gives a lease back.
    pub(crate) fn release(
        &mut self,
        machine: MachineId,
        nonce: Option<&str>,
        now: u64,
    ) -> Result<(), LeaseError> {
        self.allows(machine, nonce, now)?;
        self.0.remove(&machine).map(drop).ok_or(LeaseError::None)
    }

    /// Forgets a Machine that is gone.
    pub(crate) fn forget(&mut self, machine: MachineId) {
        self.0.remove(&machine);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(nonce: &str) -> Lease {
        let text = String::new;
        Lease { nonce: nonce.into(), expires_at: 0, owner: text(), description: text(), version: text() }
    }

    #[test]
    fn a_lease_keeps_others_out_until_it_is_released_or_expires() {
        let (mut book, machine) = (LeaseBook::default(), MachineId::from_bits(1));
        assert_eq!(book.allows(machine, None, 100), Ok(()));
        let held = book.take(machine, None, 30, 100, || lease("a")).unwrap();
        assert_eq!(held.expires_at, 130);
        for nonce in [None, Some("b")] {
            assert_eq!(book.allows(machine, nonce, 129), Err(LeaseError::Held(130)));
            assert_eq!(book.take(machine, nonce, 30, 129, || lease("b")), Err(LeaseError::Held(130)));
            assert_eq!(book.release(machine, nonce, 129), Err(LeaseError::Held(130)));
        }
        assert_eq!(book.allows(machine, Some("a"), 129), Ok(()));
        assert_eq!(book.take(machine, Some("a"), 30, 120, || lease("x")).unwrap().nonce, "a");
        assert_eq!(book.release(machine, Some("a"), 121), Ok(()));
        assert_eq!(book.release(machine, Some("a"), 121), Err(LeaseError::None));
        book.take(machine, None, 30, 200, || lease("c")).unwrap();
        assert!(book.get(machine, 230).is_some(), "to the end of its last second");
        assert_eq!(book.allows(machine, None, 231), Ok(()), "it has expired");
        assert!(book.get(machine, 231).is_none());
    }

    #[test]
    fn the_lease_of_one_machine_says_nothing_of_another() {
        let mut book = LeaseBook::default();
        book.take(MachineId::from_bits(1), None, 30, 0, || lease("a")).unwrap();
        assert_eq!(book.allows(MachineId::from_bits(2), None, 1), Ok(()));
    }
}
