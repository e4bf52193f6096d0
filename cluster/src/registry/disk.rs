//! The registry's file: one redb database with the tables `log`, `meta` and `kv`.
//!
//! All writes pass one thread in order, so nothing waits for the disk on the runtime. Durable jobs
//! (vote, log, snapshot) are on the disk when their reply comes. Soft jobs (applied facts) become
//! durable with the next durable job, or when the queue has been idle for [`IDLE`]; a crash before
//! that only means that entries are applied again. One file for both keeps the log from being purged
//! ahead of the facts that replace it.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use redb::{Database, Durability, ReadTransaction, ReadableDatabase, TableDefinition, WriteTransaction};
use serde::Serialize;
use serde::de::DeserializeOwned;
use skein_core::codec::{self, CodecError};
use tokio::sync::oneshot;

pub(super) const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
pub(super) const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
pub(super) const KV: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("kv");

/// How long applied facts wait for company before they are made durable on their own.
const IDLE: Duration = Duration::from_millis(50);
/// Bytes of pages kept in memory at most.
const CACHE: usize = 16 << 20;
/// Jobs that share a transaction at most.
const BATCH: usize = 64;

/// Why the file could not be read or written.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum DiskError {
    #[error("the registry's disk failed: {0}")]
    Failed(String),
    #[error("the registry is shut down")]
    Closed,
    #[error("row {key} of the registry's table {table:?}: {source}")]
    Row { table: &'static str, key: String, source: CodecError },
}

impl<E: Into<redb::Error>> From<E> for DiskError {
    fn from(error: E) -> Self {
        Self::Failed(error.into().to_string())
    }
}

type Work = Box<dyn FnOnce(&WriteTransaction) -> Result<(), DiskError> + Send>;

enum Job {
    Write { work: Work, done: Option<oneshot::Sender<Result<(), DiskError>>> },
    Close { done: oneshot::Sender<()> },
}

/// The open file. Reads go to it directly, writes through its thread.
pub(super) struct Disk {
    /// `None` once closed.
    database: Arc<ArcSwapOption<Database>>,
    jobs: Sender<Job>,
}

impl Disk {
    /// Opens or makes the file; blocks.
    pub(super) fn open(path: &Path) -> Result<Self, redb::Error> {
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE);
        let database = Arc::new(builder.create(path)?);
        let transaction = database.begin_write()?;
        transaction.open_table(LOG)?;
        transaction.open_table(META)?;
        transaction.open_table(KV)?;
        transaction.commit()?;
        let (jobs, queue) = mpsc::channel();
        let database = Arc::new(ArcSwapOption::new(Some(database)));
        let shared = Arc::clone(&database);
        std::thread::Builder::new()
            .name("registry-disk".into())
            .spawn(move || Writer { database: shared, unsynced: false, failed: None }.run(&queue))
            .map_err(redb::Error::Io)?;
        Ok(Self { database, jobs })
    }

    /// Reads from one consistent view.
    pub(super) fn read<T>(
        &self,
        work: impl FnOnce(&ReadTransaction) -> Result<T, DiskError>,
    ) -> Result<T, DiskError> {
        let database = self.database.load_full().ok_or(DiskError::Closed)?;
        work(&database.begin_read()?)
    }

    /// A value of the table `meta`.
    pub(super) fn meta<T: DeserializeOwned>(&self, key: &'static str) -> Result<Option<T>, DiskError> {
        self.read(|transaction| {
            let Some(row) = transaction.open_table(META)?.get(key)? else { return Ok(None) };
            codec::decode(row.value()).map(Some).map_err(|source| DiskError::Row {
                table: "meta",
                key: key.into(),
                source,
            })
        })
    }

    /// Writes and waits until it is on the disk.
    pub(super) async fn durable(
        &self,
        work: impl FnOnce(&WriteTransaction) -> Result<(), DiskError> + Send + 'static,
    ) -> Result<(), DiskError> {
        let (done, reply) = oneshot::channel();
        self.submit(Job::Write { work: Box::new(work), done: Some(done) })?;
        reply.await.map_err(|_| DiskError::Closed)?
    }

    /// Writes in order with everything else, durable a moment later. A failure shows at the next
    /// durable job.
    pub(super) fn soft(
        &self,
        work: impl FnOnce(&WriteTransaction) -> Result<(), DiskError> + Send + 'static,
    ) -> Result<(), DiskError> {
        self.submit(Job::Write { work: Box::new(work), done: None })
    }

    fn submit(&self, job: Job) -> Result<(), DiskError> {
        self.jobs.send(job).map_err(|_| DiskError::Closed)
    }

    /// Makes everything durable and closes the file; later calls fail with [`DiskError::Closed`].
    pub(super) async fn close(&self) {
        let (done, reply) = oneshot::channel();
        if self.submit(Job::Close { done }).is_ok() {
            // The thread also ends without a reply when it was closed before.
            reply.await.unwrap_or(());
        }
    }
}

/// Sets a value of the table `meta`.
pub(super) fn set_meta<T: Serialize>(
    transaction: &WriteTransaction,
    key: &'static str,
    value: &T,
) -> Result<(), DiskError> {
    transaction.open_table(META)?.insert(key, codec::encode(value).as_slice())?;
    Ok(())
}

struct Writer {
    database: Arc<ArcSwapOption<Database>>,
    /// Something was committed that would not survive a crash.
    unsynced: bool,
    /// After a failed write nobody knows what is on the disk: nothing more is written.
    failed: Option<DiskError>,
}

impl Writer {
    fn run(mut self, queue: &Receiver<Job>) {
        let mut closed = None;
        while closed.is_none() {
            let first = if self.unsynced {
                match queue.recv_timeout(IDLE) {
                    Ok(job) => job,
                    Err(RecvTimeoutError::Timeout) => {
                        self.sync();
                        continue;
                    }
                    Err(RecvTimeoutError::Disconnected) => break,
                }
            } else {
                let Ok(job) = queue.recv() else { break };
                job
            };
            let mut batch = Vec::new();
            let mut replies = Vec::new();
            for job in std::iter::once(first).chain(queue.try_iter().take(BATCH)) {
                match job {
                    Job::Write { work, done } => {
                        batch.push(work);
                        replies.extend(done);
                    }
                    Job::Close { done } => {
                        closed = Some(done);
                        break;
                    }
                }
            }
            let result = self.write(batch, !replies.is_empty());
            for done in replies {
                // Whoever asked may have been dropped; the write stands.
                done.send(result.clone()).unwrap_or(());
            }
        }
        if self.unsynced {
            self.sync();
        }
        self.database.store(None);
        if let Some(done) = closed {
            done.send(()).unwrap_or(());
        }
    }

    fn sync(&mut self) {
        // The failure is remembered and answers the next job.
        self.write(Vec::new(), true).unwrap_or(());
        self.unsynced = false;
    }

    fn write(&mut self, batch: Vec<Work>, durable: bool) -> Result<(), DiskError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let result = self.commit(batch, durable);
        match &result {
            Ok(()) => self.unsynced = !durable,
            Err(error) => {
                tracing::error!(%error, "the registry's disk failed; this node takes no more part in it");
                self.failed = Some(error.clone());
            }
        }
        result
    }

    fn commit(&self, batch: Vec<Work>, durable: bool) -> Result<(), DiskError> {
        let database = self.database.load_full().ok_or(DiskError::Closed)?;
        let mut transaction = database.begin_write()?;
        let durability = if durable { Durability::Immediate } else { Durability::None };
        transaction.set_durability(durability)?;
        for work in batch {
            work(&transaction)?;
        }
        Ok(transaction.commit()?)
    }
}
