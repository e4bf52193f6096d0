//! What an edge's requests want started: the production's cells, on the virtual clock.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use skein_core::AppId;
use skein_core::autostop::wake::Want;

/// An app, and what is to be started.
pub type Key = (AppId, Want);

#[derive(Debug, Default)]
struct Cell {
    waiting: u32,
    /// Somebody wanted it since the last word.
    wanted: bool,
    /// It is told of now and then.
    told: bool,
}

/// All that an edge's requests want started.
#[derive(Debug, Default)]
pub struct Demands {
    cells: RefCell<BTreeMap<Key, Cell>>,
    begun: RefCell<Vec<Key>>,
}

/// A request that waits while something is started for it, until it is dropped.
#[derive(Debug)]
pub struct Waiting {
    demands: Rc<Demands>,
    key: Key,
    /// Whether it waits for nothing else.
    pub only: bool,
}

impl Demands {
    /// A request wants a start and goes on.
    pub fn want(&self, key: Key) {
        let mut cells = self.cells.borrow_mut();
        let cell = cells.entry(key).or_default();
        cell.wanted = true;
        if !std::mem::replace(&mut cell.told, true) {
            self.begun.borrow_mut().push(key);
        }
    }

    /// A request wants a start and waits.
    pub fn wait(self: &Rc<Self>, key: Key) -> Waiting {
        self.cells.borrow_mut().entry(key).or_default().waiting += 1;
        self.want(key);
        Waiting { demands: Rc::clone(self), key, only: false }
    }

    /// What is to be told of from now on.
    pub fn take_begun(&self) -> Vec<Key> {
        std::mem::take(&mut self.begun.borrow_mut())
    }

    /// It is told now: how many wait.
    pub fn says(&self, key: Key) -> u32 {
        let mut cells = self.cells.borrow_mut();
        let cell = cells.entry(key).or_default();
        cell.wanted = false;
        cell.waiting
    }

    /// Whether there is nothing more to tell.
    pub fn ends(&self, key: Key) -> bool {
        let mut cells = self.cells.borrow_mut();
        let cell = cells.entry(key).or_default();
        let over = !cell.wanted && cell.waiting == 0;
        cell.told = !over;
        over
    }
}

impl Waiting {
    /// Whether it waits for that.
    pub fn is_for(&self, key: Key) -> bool {
        self.key == key
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(cell) = self.demands.cells.borrow_mut().get_mut(&self.key) {
            cell.waiting = cell.waiting.saturating_sub(1);
        }
    }
}
