//! When a Machine is written to the store: one write at a time, always of the newest state, and
//! calls are answered once a write that began after them has ended.

use ractor::RpcReplyPort;
use skein_cluster::store::Store;
use skein_core::machine::MachineState;

use crate::error::MachineError;
use crate::run::Task;
use crate::stored::{Stored, TABLE};

type Reply = (RpcReplyPort<Result<MachineState, MachineError>>, MachineState);

/// What is written and who waits for it.
#[derive(Default)]
pub(crate) struct Saver {
    dirty: bool,
    forget: bool,
    forgotten: bool,
    writing: bool,
    /// Wait for the write that is under way, and for the next one.
    waiting: Vec<Reply>,
    next: Vec<Reply>,
    /// Begin once the write that is under way has ended, and the next one.
    held: Vec<Task>,
    next_held: Vec<Task>,
}

impl Saver {
    pub(crate) fn dirty(&mut self) {
        self.dirty = true;
    }

    /// The next write removes the row; after it nothing is written.
    pub(crate) fn forget(&mut self) {
        self.forget = true;
        self.dirty = true;
    }

    pub(crate) fn answer_once_saved(
        &mut self,
        reply: RpcReplyPort<Result<MachineState, MachineError>>,
        previous: MachineState,
    ) {
        self.next.push((reply, previous));
    }

    /// Holds tasks back until what is known now is on the disk.
    pub(crate) fn hold(&mut self, tasks: Vec<Task>) {
        self.dirty = true;
        self.next_held.extend(tasks);
    }

    /// The tasks that may begin.
    pub(crate) fn released(&mut self) -> Vec<Task> {
        if self.writing { Vec::new() } else { std::mem::take(&mut self.held) }
    }

    pub(crate) fn is_idle(&self) -> bool {
        !self.dirty && !self.writing
    }

    /// The write to begin now, if there is one.
    pub(crate) fn next(
        &mut self,
        store: &Store,
        stored: &Stored,
    ) -> Option<impl Future<Output = Result<(), String>> + Send + 'static> {
        if !self.dirty || self.writing || self.forgotten {
            return None;
        }
        (self.dirty, self.writing, self.forgotten) = (false, true, self.forget);
        self.waiting.append(&mut self.next);
        self.held.append(&mut self.next_held);
        let (store, forget, key) = (store.clone(), self.forget, stored.id.to_string());
        let row = stored.row();
        Some(async move {
            if forget {
                return store.delete(TABLE, &key).await.map(drop).map_err(|error| error.to_string());
            }
            let row = row.map_err(|error| error.to_string())?;
            store.put(TABLE, &key, &row).await.map_err(|error| error.to_string())
        })
    }

    /// A write ended: answers whom it concerns. Whether the Machine is gone for good.
    pub(crate) fn saved(&mut self, result: Result<(), String>) -> bool {
        self.writing = false;
        for (reply, previous) in self.waiting.drain(..) {
            let answer = match &result {
                Ok(()) => Ok(previous),
                Err(error) => Err(MachineError::Unavailable(format!("the node could not store it: {error}"))),
            };
            // A caller that is gone needs no answer.
            let _ = reply.send(answer);
        }
        self.forgotten && result.is_ok()
    }
}
