//! The replicated state machine: core's [`State`], stored row by row and published after each change.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use openraft::storage::RaftStateMachine;
use openraft::{EntryPayload, RaftSnapshotBuilder, StorageError};
use redb::{ReadableTable, WriteTransaction};
use skein_core::codec;
use skein_core::facts::{Fact, FactKey, State};
use tokio::sync::watch;
use ulid::Ulid;

use super::disk::{Disk, DiskError, KV, set_meta};
use super::types::{Applied, Entry, Id, Image, Position, Snapshot, SnapshotMeta, Types, disk_failed};
use crate::clock;
use crate::entropy::Entropy;

const APPLIED: &str = "applied";

/// The index of the last applied entry (0 when none is) and the facts as of then.
pub(super) type Published = (u64, Arc<State>);

pub(super) struct Machine {
    disk: Arc<Disk>,
    state: State,
    position: Position,
    snapshot: Arc<ArcSwapOption<Snapshot>>,
    publisher: watch::Sender<Published>,
}

impl Machine {
    /// The machine as it was stored; blocks. A fact that cannot be read is an error: without it this
    /// node would apply later entries differently from all others.
    pub(super) fn load(disk: Arc<Disk>) -> Result<Self, DiskError> {
        let position: Position = disk.meta(APPLIED)?.unwrap_or_default();
        let facts = disk.read(|transaction| {
            let mut facts = Vec::new();
            for row in transaction.open_table(KV)?.iter()? {
                let (key, value) = row?;
                facts.push(codec::decode::<Fact>(value.value()).map_err(|source| {
                    let key = codec::decode::<FactKey>(key.value());
                    DiskError::Row { table: "kv", key: format!("{key:?}"), source }
                })?);
            }
            Ok(facts)
        })?;
        let state = State::from_facts(facts);
        let publisher = watch::Sender::new((index(&position), Arc::new(state.clone())));
        Ok(Self { disk, state, position, snapshot: Arc::default(), publisher })
    }

    pub(super) fn watch(&self) -> watch::Receiver<Published> {
        self.publisher.subscribe()
    }

    fn publish(&self) {
        self.publisher.send_replace((index(&self.position), Arc::new(self.state.clone())));
    }
}

fn index(position: &Position) -> u64 {
    position.0.map_or(0, |log_id| log_id.index)
}

fn write_rows(
    transaction: &WriteTransaction,
    rows: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    position: &Position,
) -> Result<(), DiskError> {
    let mut table = transaction.open_table(KV)?;
    for (key, value) in rows {
        match value {
            Some(value) => table.insert(key.as_slice(), value.as_slice())?,
            None => table.remove(key.as_slice())?,
        };
    }
    set_meta(transaction, APPLIED, position)
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<Position, StorageError<Id>> {
        Ok(self.position.clone())
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Applied>, StorageError<Id>>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let mut answers = Vec::new();
        let mut rows = Vec::new();
        for entry in entries {
            self.position.0 = Some(entry.log_id);
            answers.push(Applied(match entry.payload {
                EntryPayload::Blank => None,
                EntryPayload::Membership(membership) => {
                    self.position.1 = openraft::StoredMembership::new(Some(entry.log_id), membership);
                    None
                }
                EntryPayload::Normal(proposal) => {
                    let (outcome, changed) = self.state.apply(&proposal);
                    let row = |key: FactKey| {
                        (codec::encode(&key), self.state.fact(&key).map(|fact| codec::encode(&fact)))
                    };
                    rows.extend(changed.into_iter().map(row));
                    Some(outcome)
                }
            }));
        }
        let position = self.position.clone();
        self.disk.soft(move |transaction| write_rows(transaction, rows, &position)).map_err(disk_failed)?;
        // Published before the answers go out: whoever wrote through this node then reads it here.
        self.publish();
        Ok(answers)
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder {
            image: Image(self.state.clone()),
            position: self.position.clone(),
            slot: Arc::clone(&self.snapshot),
        }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Image>, StorageError<Id>> {
        Ok(Box::new(Image(State::default())))
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<Image>,
    ) -> Result<(), StorageError<Id>> {
        let position = (meta.last_log_id, meta.last_membership.clone());
        let stored = position.clone();
        let image = Image::clone(&snapshot);
        let written = self.disk.durable(move |transaction| {
            transaction.delete_table(KV)?;
            let rows = keyed(&image.0).map(|(key, fact)| (codec::encode(&key), Some(codec::encode(&fact))));
            write_rows(transaction, rows.collect(), &stored)
        });
        written.await.map_err(disk_failed)?;
        self.state = snapshot.0.clone();
        self.position = position;
        self.snapshot.store(Some(Arc::new(Snapshot { meta: meta.clone(), snapshot })));
        self.publish();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, StorageError<Id>> {
        Ok(self.snapshot.load_full().map(|snapshot| Snapshot::clone(&snapshot)))
    }
}

fn keyed(state: &State) -> impl Iterator<Item = (FactKey, Fact)> {
    state.facts().into_iter().map(|fact| (fact.key(), fact))
}

/// Makes a snapshot of the moment at which it was asked for.
pub(super) struct Builder {
    image: Image,
    position: Position,
    slot: Arc<ArcSwapOption<Snapshot>>,
}

impl RaftSnapshotBuilder<Types> for Builder {
    async fn build_snapshot(&mut self) -> Result<Snapshot, StorageError<Id>> {
        let (last_log_id, last_membership) = self.position.clone();
        let random = skein_core::Random::next_u64(&mut Entropy::default());
        let snapshot_id = Ulid::from_parts(clock::unix_ms(), u128::from(random)).to_string();
        let meta = SnapshotMeta { last_log_id, last_membership, snapshot_id };
        let snapshot = Snapshot { meta, snapshot: Box::new(self.image.clone()) };
        self.slot.store(Some(Arc::new(snapshot.clone())));
        Ok(snapshot)
    }
}
