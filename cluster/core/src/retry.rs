//! What follows a failed attempt (SPEC LB-5, LB-6).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::code::ErrorCode;
use crate::planted::{self, Bug};
use crate::wire::{RefuseReason, Refused};

/// Attempts of one request that may fail before it is answered PR03.
pub const MAX_ATTEMPTS: u32 = 90;

/// How an attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    /// The worker did not take it: nothing reached the app.
    Refused(RefuseReason),
    /// The worker's node could not be reached: nothing reached the app.
    Unreachable,
    /// It broke off. `reached_app` when a byte of it may have reached the app.
    Broken {
        /// The code that names how.
        code: ErrorCode,
        /// Whether the app may have seen it.
        reached_app: bool,
    },
}

impl Failure {
    /// The code of it, when it is the request's last word.
    pub fn code(self) -> ErrorCode {
        match self {
            Self::Refused(reason) => refusal_code(reason),
            Self::Unreachable => ErrorCode::PM02,
            Self::Broken { code, .. } => code,
        }
    }
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Try another Machine.
    Retry,
    /// Answer with this code.
    Answer(ErrorCode),
}

/// What an edge knows of a request whose attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempted {
    /// Attempts so far that were not refused before admission.
    pub attempts: u32,
    /// Whether the method is idempotent (RFC 9110 section 9.2.2).
    pub idempotent: bool,
    /// Whether the whole body sent so far can be sent again.
    pub replayable: bool,
    /// Time left.
    pub left: Duration,
}

/// Decides after a failure. A request that may have reached the app is retried only if its method
/// is idempotent; one whose body can't be sent again is not retried.
pub fn after_failure(failure: Failure, so_far: Attempted) -> Next {
    let code = failure.code();
    let reached = matches!(failure, Failure::Broken { reached_app: true, .. });
    if so_far.left.is_zero()
        || !so_far.replayable
        || (reached && !so_far.idempotent && !planted::is(Bug::RetriedPost))
    {
        return Next::Answer(code);
    }
    if so_far.attempts >= MAX_ATTEMPTS {
        return Next::Answer(ErrorCode::PR03);
    }
    Next::Retry
}

/// Whether the worker refused it before it admitted it, for what it knew without asking the Machine: that
/// is no attempt of SPEC LB-6 and no retry of LB-9, since it costs the app nothing.
pub fn is_before_admission(failure: Failure) -> bool {
    match failure {
        Failure::Refused(RefuseReason::Connect(_) | RefuseReason::Hops | RefuseReason::Unreachable) => false,
        Failure::Refused(_) => true,
        Failure::Unreachable | Failure::Broken { .. } => false,
    }
}

/// The code of a refusal, when it is the request's last word.
pub fn refusal_code(reason: RefuseReason) -> ErrorCode {
    match reason {
        RefuseReason::Full => ErrorCode::PR04,
        RefuseReason::Stopped | RefuseReason::Unhealthy | RefuseReason::Cordoned | RefuseReason::Draining => {
            ErrorCode::PR01
        }
        RefuseReason::Unknown => ErrorCode::PR02,
        RefuseReason::NoService => ErrorCode::PR01,
        RefuseReason::Connect(code) => code,
        RefuseReason::Hops => ErrorCode::PR03,
        RefuseReason::Unreachable => ErrorCode::PM02,
    }
}

/// A Machine that stopped less than this ago, in milliseconds, says so when it refuses (SPEC LB-5).
pub const RECENT_STOP_MS: u64 = 5 * 60_000;

/// The code of a worker's refusal, for logs and traces of an attempt: `PM11` "informs the proxy about the
/// stopped state of the machine, and instructs the edge to forward the request to another machine".
pub fn refused_code(refused: &Refused) -> ErrorCode {
    let recent = refused.reason == RefuseReason::Stopped && refused.age_ms < RECENT_STOP_MS;
    if recent { ErrorCode::PM11 } else { refusal_code(refused.reason) }
}

/// Whether a method may be repeated (RFC 9110 section 9.2.2).
pub fn is_idempotent(method: &http::Method) -> bool {
    method.is_idempotent()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn so_far() -> Attempted {
        Attempted { attempts: 1, idempotent: false, replayable: true, left: Duration::from_secs(30) }
    }

    const BROKEN: Failure = Failure::Broken { code: ErrorCode::PU02, reached_app: true };

    /// SPEC LB-6.
    #[test]
    fn a_post_that_may_have_reached_the_app_is_not_repeated_and_a_get_is() {
        assert_eq!(after_failure(BROKEN, so_far()), Next::Answer(ErrorCode::PU02));
        assert_eq!(after_failure(BROKEN, Attempted { idempotent: true, ..so_far() }), Next::Retry);
        let before = Failure::Broken { code: ErrorCode::PC01, reached_app: false };
        assert_eq!(after_failure(before, so_far()), Next::Retry);
        assert_eq!(after_failure(Failure::Refused(RefuseReason::Full), so_far()), Next::Retry);
    }

    /// SPEC LB-5.
    #[test]
    fn a_machine_that_stopped_a_short_time_ago_says_so() {
        let refused = |reason, age_ms| refused_code(&Refused { reason, age_ms, load: 0 });
        assert_eq!(refused(RefuseReason::Stopped, RECENT_STOP_MS - 1), ErrorCode::PM11);
        assert_eq!(refused(RefuseReason::Stopped, RECENT_STOP_MS), ErrorCode::PR01);
        assert_eq!(refused(RefuseReason::Full, 0), ErrorCode::PR04);
    }

    #[test]
    fn ninety_attempts_are_the_end() {
        let tired = Attempted { attempts: MAX_ATTEMPTS, idempotent: true, ..so_far() };
        assert_eq!(after_failure(BROKEN, tired), Next::Answer(ErrorCode::PR03));
    }

    proptest! {
        #[test]
        fn nothing_is_retried_without_time_or_a_body(attempts in 0u32..100, idempotent: bool, timed_out: bool) {
            let left = if timed_out { Duration::ZERO } else { Duration::from_secs(1) };
            let so_far = Attempted { attempts, idempotent, replayable: timed_out, left };
            prop_assert!(matches!(after_failure(BROKEN, so_far), Next::Answer(_)));
        }
    }
}
