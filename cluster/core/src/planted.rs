//! Bugs planted on purpose, to see that the simulator finds them.
//!
//! Without the feature `planted`, which only the simulator's own build has, [`is`] is constantly
//! false and nothing of this is left in the program; `tests/layout.rs` holds that no other crate
//! asks for it. With it, one bug at a time can be planted (`plant`) while the program runs.

/// A planted bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Bug {
    /// A worker admits one request more than `hard_limit`.
    HardLimit = 1,
    /// The balancer takes the most loaded Machine instead of the least loaded.
    Balancer,
    /// A POST is tried again although its bytes may have reached the app.
    RetriedPost,
    /// The age of facts is not renewed when their owner speaks.
    Age,
    /// The withdrawal of a Machine does not reach the snapshot.
    Withdrawal,
    /// A partition that is healed stays.
    Partition,
    /// The newest of those who wait is let try first.
    Newest,
    /// A slot that is kept for an edge is given to another one.
    Turns,
    /// The budget for retries is never spent.
    Budget,
    /// Autostop leaves none running.
    Floor,
    /// Every node of a region decides for its apps.
    Decider,
}

impl Bug {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::HardLimit,
        Self::Balancer,
        Self::RetriedPost,
        Self::Age,
        Self::Withdrawal,
        Self::Partition,
        Self::Newest,
        Self::Turns,
        Self::Budget,
        Self::Floor,
        Self::Decider,
    ];

    /// Its name on a command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::HardLimit => "hard-limit",
            Self::Balancer => "balancer",
            Self::RetriedPost => "retried-post",
            Self::Age => "age",
            Self::Withdrawal => "withdrawal",
            Self::Partition => "partition",
            Self::Newest => "newest",
            Self::Turns => "turns",
            Self::Budget => "budget",
            Self::Floor => "floor",
            Self::Decider => "decider",
        }
    }
}

#[cfg(feature = "planted")]
static PLANTED: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(0);

/// Plants a bug in this process in place of the last one; `None` removes it.
#[cfg(feature = "planted")]
pub fn plant(bug: Option<Bug>) {
    PLANTED.store(bug.map_or(0, |bug| bug as u8), std::sync::atomic::Ordering::SeqCst);
}

/// Whether a bug is planted.
#[cfg(feature = "planted")]
pub fn is(bug: Bug) -> bool {
    PLANTED.load(std::sync::atomic::Ordering::Relaxed) == bug as u8
}

/// Whether a bug is planted: never, in a build without the feature.
#[cfg(not(feature = "planted"))]
#[inline(always)]
pub const fn is(_: Bug) -> bool {
    false
}
