//! Raft's log and vote on the [`Disk`].

use std::fmt::Debug;
use std::ops::RangeBounds;
use std::sync::Arc;

use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{LogId, LogState, RaftLogReader, StorageError, Vote};
use redb::ReadableTable;
use skein_core::codec;

use super::disk::{Disk, DiskError, LOG, set_meta};
use super::types::{Entry, Id, Types, disk_failed};

pub(super) const VOTE: &str = "vote";
const PURGED: &str = "purged";

#[derive(Clone)]
pub(super) struct Log(pub(super) Arc<Disk>);

fn entry(index: u64, bytes: &[u8]) -> Result<Entry, DiskError> {
    codec::decode(bytes).map_err(|source| DiskError::Row { table: "log", key: index.to_string(), source })
}

impl Log {
    fn last(&self) -> Result<Option<LogId<Id>>, DiskError> {
        self.0.read(|transaction| {
            let table = transaction.open_table(LOG)?;
            let Some((index, bytes)) = table.last()? else { return Ok(None) };
            entry(index.value(), bytes.value()).map(|entry| Some(entry.log_id))
        })
    }

    /// What was cut off the log's beginning, and its last entry, which may be the cut.
    pub(super) fn ends(&self) -> Result<LogState<Types>, DiskError> {
        let last_purged_log_id = self.0.meta(PURGED)?;
        Ok(LogState { last_purged_log_id, last_log_id: self.last()?.or(last_purged_log_id) })
    }
}

impl RaftLogReader<Types> for Log {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + Send>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError<Id>> {
        self.0
            .read(|transaction| {
                let table = transaction.open_table(LOG)?;
                table
                    .range(range)?
                    .map(|row| row.map_err(DiskError::from).and_then(|(i, b)| entry(i.value(), b.value())))
                    .collect()
            })
            .map_err(disk_failed)
    }
}

impl RaftLogStorage<Types> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, StorageError<Id>> {
        self.ends().map_err(disk_failed)
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote<Id>) -> Result<(), StorageError<Id>> {
        let vote = *vote;
        self.0.durable(move |transaction| set_meta(transaction, VOTE, &vote)).await.map_err(disk_failed)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote<Id>>, StorageError<Id>> {
        self.0.meta(VOTE).map_err(disk_failed)
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<Types>) -> Result<(), StorageError<Id>>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let rows: Vec<_> =
            entries.into_iter().map(|entry| (entry.log_id.index, codec::encode(&entry))).collect();
        let written = self.0.durable(move |transaction| {
            let mut table = transaction.open_table(LOG)?;
            for (index, bytes) in rows {
                table.insert(index, bytes.as_slice())?;
            }
            Ok(())
        });
        let written = written.await;
        callback.log_io_completed(written.clone().map_err(std::io::Error::other));
        written.map_err(disk_failed)
    }

    async fn truncate(&mut self, log_id: LogId<Id>) -> Result<(), StorageError<Id>> {
        let cut = self.0.durable(move |transaction| {
            transaction.open_table(LOG)?.retain_in(log_id.index.., |_, _| false)?;
            Ok(())
        });
        cut.await.map_err(disk_failed)
    }

    async fn purge(&mut self, log_id: LogId<Id>) -> Result<(), StorageError<Id>> {
        let cut = self.0.durable(move |transaction| {
            set_meta(transaction, PURGED, &log_id)?;
            transaction.open_table(LOG)?.retain_in(..=log_id.index, |_, _| false)?;
            Ok(())
        });
        cut.await.map_err(disk_failed)
    }
}
