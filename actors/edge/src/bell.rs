//! Wakes between parts that one task polls.
//!
//! A task that polls several futures is woken for any of them, and does not learn for which. A part
//! that gets a [`Bell`] as its waker is polled only when it was woken itself; and what it rings while
//! the task runs anyway does not wake the task again.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use atomic_waker::AtomicWaker;

/// Whether a part was woken since it was last polled, and the task that waits for that.
#[derive(Debug)]
pub(crate) struct Bell {
    rung: AtomicBool,
    waiting: AtomicWaker,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            self.waiting.wake();
        }
    }
}

impl Bell {
    /// A bell that has rung, since its part wants its first poll; and the waker that rings it.
    pub(crate) fn new() -> (Arc<Self>, Waker) {
        let bell = Arc::new(Self { rung: AtomicBool::new(true), waiting: AtomicWaker::new() });
        let waker = Waker::from(Arc::clone(&bell));
        (bell, waker)
    }

    /// Whether it rang since the last answer.
    pub(crate) fn rang(&self) -> bool {
        self.rung.load(Ordering::Acquire)
    }

    /// Whether it rang since the last answer, which this is.
    pub(crate) fn answer(&self) -> bool {
        // Most looks find nothing, and then write nothing.
        self.rang() && self.rung.swap(false, Ordering::AcqRel)
    }

    /// The task of `cx` is woken from now on; false when it rang already.
    pub(crate) fn wait(&self, cx: &Context<'_>) -> bool {
        if self.rang() {
            return false;
        }
        self.waiting.register(cx.waker());
        !self.rang()
    }

    /// Nobody is woken.
    pub(crate) fn forget(&self) {
        self.waiting.take();
    }
}

/// What ended first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum First<A, B> {
    Busy(A),
    Seldom(B),
}

/// Polls `busy` whenever the task runs, and `seldom` only when that was woken itself: what waits for
/// minutes costs what moves all the time nearly nothing.
pub(crate) async fn beside<A, B>(
    mut busy: Pin<&mut impl Future<Output = A>>,
    seldom: impl Future<Output = B>,
) -> First<A, B> {
    let mut seldom = pin!(seldom);
    let (bell, waker) = Bell::new();
    std::future::poll_fn(|cx| {
        if let Poll::Ready(value) = busy.as_mut().poll(cx) {
            return Poll::Ready(First::Busy(value));
        }
        while !bell.wait(cx) {
            bell.answer();
            if let Poll::Ready(value) = seldom.as_mut().poll(&mut Context::from_waker(&waker)) {
                return Poll::Ready(First::Seldom(value));
            }
        }
        Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn what_is_seldom_is_polled_when_it_was_woken_and_not_when_the_busy_part_was() {
        let (work, rest) = (Notify::new(), Notify::new());
        let (done, polled) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let mut busy = pin!(async {
            loop {
                work.notified().await;
                done.fetch_add(1, Ordering::SeqCst);
            }
        });
        let seldom = async {
            let mut waiting = pin!(rest.notified());
            std::future::poll_fn(|cx| {
                polled.fetch_add(1, Ordering::SeqCst);
                waiting.as_mut().poll(cx)
            })
            .await;
        };
        let from_outside = async {
            for expected in 1..=10 {
                work.notify_one();
                while done.load(Ordering::SeqCst) < expected {
                    tokio::task::yield_now().await;
                }
            }
            assert_eq!(polled.load(Ordering::SeqCst), 1, "the poll that told it to wait");
            rest.notify_one();
        };
        let (first, ()) = tokio::join!(beside(busy.as_mut(), seldom), from_outside);
        let _: First<(), ()> = first;
        assert_eq!(first, First::Seldom(()));
        assert_eq!(polled.load(Ordering::SeqCst), 2);
    }
}
