//! Requests of an edge that wait, on the production's [`Queues`]: what the edge's own shell does with a
//! lock and wakers, on the virtual clock.

use std::cell::RefCell;
use std::rc::Rc;

use skein_core::queue::{Bounds, Crowded, Queues, Service, Ticket, Want};

use crate::agenda::{Micros, SECOND};

/// So few that they are met.
pub const BOUNDS: Bounds = Bounds { service: 12, all: 20 };
/// How long a request waits at most.
pub const TIMEOUT: Micros = 3 * SECOND;

/// All queues of an edge, and who was woken and does not know it yet.
#[derive(Debug)]
pub struct Queue {
    queues: RefCell<Queues<u64>>,
    woken: RefCell<Vec<u64>>,
}

/// A place in a queue, given up when dropped.
#[derive(Debug)]
pub struct Place {
    queue: Rc<Queue>,
    service: Service,
    ticket: Ticket,
}

impl Queue {
    /// One in which nobody waits.
    pub fn new(bounds: Bounds) -> Self {
        Self { queues: RefCell::new(Queues::new(bounds)), woken: RefCell::default() }
    }

    /// Whether somebody waits for the same, so that a newcomer goes behind them.
    pub fn is_ahead(&self, service: Service, want: &Want) -> bool {
        self.queues.borrow().is_ahead(service, want)
    }

    /// A place at the end.
    ///
    /// # Errors
    /// [`Crowded`].
    pub fn join(self: &Rc<Self>, service: Service, want: Want, request: u64) -> Result<Place, Crowded> {
        let ticket = self.queues.borrow_mut().join(service, want, request)?;
        Ok(Place { queue: Rc::clone(self), service, ticket })
    }

    /// There is room: lets the first try that can use it; whether there was one.
    pub fn room(&self, service: Service, useful: impl Fn(&Want) -> bool) -> bool {
        let woken = self.queues.borrow_mut().room(service, useful);
        self.woken.borrow_mut().extend(woken);
        woken.is_some()
    }

    /// Who was woken since the last call.
    pub fn take_woken(&self) -> Vec<u64> {
        std::mem::take(&mut self.woken.borrow_mut())
    }
}

impl Place {
    /// Whether it tries by itself.
    pub fn is_first(&self) -> bool {
        self.queue.queues.borrow().is_first(self.service, self.ticket)
    }

    /// It tries by itself.
    pub fn tries(&self) {
        self.queue.queues.borrow_mut().tries(self.service, self.ticket);
    }

    /// It found no room, and waits on.
    pub fn again(&self) {
        self.queue.queues.borrow_mut().again(self.service, self.ticket);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let next = self.queue.queues.borrow_mut().leave(self.service, self.ticket);
        self.queue.woken.borrow_mut().extend(next);
    }
}
