//! Rows of this node that must survive a crash: the configurations and records of its Machines.
//!
//! What: named tables of text keys and values in core's versioned encoding, in one redb file. A write
//! is on the disk when it returns. What not: the registry's log, which has a file of its own.
//!
//! A row that cannot be read harms only itself: it is named in [`Listing::bad`] and stays on the disk.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, TableError, TableHandle};
use serde::Serialize;
use serde::de::DeserializeOwned;
use skein_core::codec::{self, CodecError};

/// Bytes of pages that a store keeps in memory at most.
const CACHE: usize = 8 << 20;

/// Why the store did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file cannot be opened: another process has it, no permission, or it is damaged.
    #[error("cannot open the store {path}: {source}")]
    Open {
        /// The file.
        path: PathBuf,
        /// What redb says.
        source: Box<redb::DatabaseError>,
    },
    /// The disk failed or is full.
    #[error("the store failed: {0}")]
    Disk(Box<redb::Error>),
    /// The row is there but holds no such value; a newer build or a damaged disk wrote it.
    #[error("row {key:?} of table {table:?}: {source}")]
    Row {
        /// The table.
        table: String,
        /// The row's key.
        key: String,
        /// What is wrong with its bytes.
        source: CodecError,
    },
    /// The runtime is shutting down.
    #[error("the store's work was cancelled")]
    Cancelled,
}

fn disk(error: impl Into<redb::Error>) -> StoreError {
    StoreError::Disk(Box::new(error.into()))
}

/// A row that could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadRow {
    /// Its key.
    pub key: String,
    /// What is wrong with its bytes.
    pub error: CodecError,
}

/// All rows of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing<T> {
    /// Key and value, by key.
    pub rows: Vec<(String, T)>,
    /// Rows that hold no such value, by key; they were left as they are.
    pub bad: Vec<BadRow>,
}

/// A redb file of versioned rows. Clones share it; the last one closes it.
#[derive(Debug, Clone)]
pub struct Store(Arc<Database>);

impl Store {
    /// Opens the file, or makes it. Blocks on the disk: call it at start, or off the runtime.
    ///
    /// # Errors
    /// [`StoreError::Open`].
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE);
        let database = builder
            .create(path)
            .map_err(|source| StoreError::Open { path: path.to_owned(), source: Box::new(source) })?;
        Ok(Self(Arc::new(database)))
    }

    /// Writes a row; it is on the disk when this returns. Dropping the future does not undo it.
    ///
    /// # Errors
    /// [`StoreError::Disk`]; then the old row, if any, is still there.
    pub async fn put<T: Serialize>(&self, table: &str, key: &str, value: &T) -> Result<(), StoreError> {
        let (table, key, bytes) = (table.to_owned(), key.to_owned(), codec::encode(value));
        self.blocking(move |store| store.put_bytes(&table, &key, &bytes)).await
    }

    /// The row of that key; `None` when there is none.
    ///
    /// # Errors
    /// [`StoreError::Disk`]; [`StoreError::Row`] when the row holds no such value.
    pub async fn get<T>(&self, table: &str, key: &str) -> Result<Option<T>, StoreError>
    where
        T: DeserializeOwned + Send + 'static,
    {
        let (table, key) = (table.to_owned(), key.to_owned());
        self.blocking(move |store| {
            let Some(bytes) = store.get_bytes(&table, &key)? else { return Ok(None) };
            codec::decode(&bytes).map(Some).map_err(|source| StoreError::Row { table, key, source })
        })
        .await
    }

    /// Removes a row, durably; whether it was there.
    ///
    /// # Errors
    /// [`StoreError::Disk`].
    pub async fn delete(&self, table: &str, key: &str) -> Result<bool, StoreError> {
        let (table, key) = (table.to_owned(), key.to_owned());
        self.blocking(move |store| store.delete_row(&table, &key)).await
    }

    /// All rows of a table; empty when it was never written.
    ///
    /// # Errors
    /// [`StoreError::Disk`]. Rows that cannot be read are no error: see [`Listing::bad`].
    pub async fn list<T>(&self, table: &str) -> Result<Listing<T>, StoreError>
    where
        T: DeserializeOwned + Send + 'static,
    {
        let table = table.to_owned();
        self.blocking(move |store| store.list_rows(&table)).await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let store = self.clone();
        tokio::task::spawn_blocking(move || work(&store)).await.map_err(|_| StoreError::Cancelled)?
    }

    fn put_bytes(&self, table: &str, key: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let transaction = self.0.begin_write().map_err(disk)?;
        transaction.open_table(definition(table)).map_err(disk)?.insert(key, bytes).map_err(disk)?;
        transaction.commit().map_err(disk)
    }

    fn get_bytes(&self, table: &str, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let transaction = self.0.begin_read().map_err(disk)?;
        let table = match transaction.open_table(definition(table)) {
            Ok(table) => table,
            Err(TableError::TableDoesNotExist(_)) => return Ok(None),
            Err(error) => return Err(disk(error)),
        };
        Ok(table.get(key).map_err(disk)?.map(|row| row.value().to_vec()))
    }

    fn delete_row(&self, table: &str, key: &str) -> Result<bool, StoreError> {
        let transaction = self.0.begin_write().map_err(disk)?;
        let removed =
            transaction.open_table(definition(table)).map_err(disk)?.remove(key).map_err(disk)?.is_some();
        transaction.commit().map_err(disk)?;
        Ok(removed)
    }

    fn list_rows<T: DeserializeOwned>(&self, table: &str) -> Result<Listing<T>, StoreError> {
        let mut listing = Listing { rows: Vec::new(), bad: Vec::new() };
        let transaction = self.0.begin_read().map_err(disk)?;
        let table = match transaction.open_table(definition(table)) {
            Ok(table) => table,
            Err(TableError::TableDoesNotExist(_)) => return Ok(listing),
            Err(error) => return Err(disk(error)),
        };
        for row in table.iter().map_err(disk)? {
            let (key, value) = row.map_err(disk)?;
            let key = key.value().to_owned();
            match codec::decode(value.value()) {
                Ok(value) => listing.rows.push((key, value)),
                Err(error) => {
                    tracing::warn!(table = table.name(), key, %error, "a stored row cannot be read; it is skipped");
                    listing.bad.push(BadRow { key, error });
                }
            }
        }
        Ok(listing)
    }
}

fn definition(table: &str) -> TableDefinition<'_, &'static str, &'static [u8]> {
    TableDefinition::new(table)
}

#[cfg(test)]
mod tests;
