//! The codes of proxy errors (SPEC OBS-3, HTTP-13).
//!
//! Source: `monitoring/error-codes` of `superfly/docs`; statuses are those of SPEC HTTP-13.

use serde::{Deserialize, Serialize};

macro_rules! codes {
    ($($code:ident $status:literal $help:literal;)*) => {
        /// A code of the reference.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum ErrorCode { $(#[doc = $help] $code,)* }

        impl ErrorCode {
            /// Every code.
            pub const ALL: &'static [Self] = &[$(Self::$code,)*];
            /// As written in headers, logs and metrics.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$code => stringify!($code),)* }
            }
            /// The status of the proxy's own response.
            pub fn status(self) -> u16 {
                match self { $(Self::$code => $status,)* }
            }
            /// One line for whoever meets it: what happened and what to do.
            pub fn help(self) -> &'static str {
                match self { $(Self::$code => $help,)* }
            }
        }
    };
}

codes! {
    PP01 500 "the proxy met an internal fault; its log names the request id";
    PU01 502 "the Machine's HTTP response could not be read; check what the app sends";
    PU02 502 "the Machine closed the connection before it answered; see the app's log";
    PU03 502 "the request could not be sent to the Machine; see the app's log";
    PU04 502 "the Machine's response ended too early; see the app's log";
    PC01 502 "the Machine refused the connection; does the app listen on 0.0.0.0 and on its internal_port?";
    PC02 502 "the Machine refused the connection; does the app listen on 0.0.0.0?";
    PC03 502 "the Machine reset the connection while it was made; see the app's log";
    PC04 502 "the Machine aborted the connection while it was made; see the app's log";
    PC05 504 "the connection to the Machine timed out; is the app overloaded or stopped?";
    PC06 502 "an input or output error kept the connection to the Machine from being made";
    PC07 502 "no connection to the Machine could be made after too many tries";
    PC08 502 "the connection to the Machine could not be given a timeout";
    PA01 413 "the request body is too large to be replayed; see replay limits";
    PA02 502 "too many replays (10); do two apps replay to each other?";
    PA03 502 "the fly-replay instruction is not valid";
    PA04 502 "the fly-replay target is in another network; the organization must enable cross-network replays";
    PA05 502 "the fly-replay target is in another organization that does not allow it, or does not exist";
    PE01 503 "the edge is draining; try again";
    PE02 503 "the edge has no capacity left; try again";
    PR01 503 "no Machine can take the request now: none is started and healthy; see `skein machines list`";
    PR02 502 "the Machine that was asked for does not exist";
    PR03 503 "no Machine took the request after all attempts; see `skein machines list`";
    PR04 503 "no Machine is below its hard_limit; try again";
    PL01 503 "the client's connection limit is reached; try again";
    PL02 503 "the client's rate limit is reached; try again";
    PM01 503 "the Machine could not be started";
    PM02 503 "the Machine's node did not answer";
    PM03 504 "the Machine did not become ready in time";
    PM04 503 "the Machine is being replaced";
    PM05 503 "the Machine stopped while the request waited";
    PM06 503 "the Machine is destroyed";
    PM07 503 "the Machine failed its start";
    PM08 503 "the Machine may not be started by traffic";
    PM09 503 "the Machine's state does not allow a start";
    PM10 503 "the Machine's start was refused by its node";
    PM11 503 "the Machine was stopped a short time ago";
    PT01 500 "too many TLS handshakes from this client";
    PT02 500 "too many TLS handshakes for this name";
    PT03 500 "the TLS handshake timed out";
    PT04 500 "the TLS handshake failed";
    PT05 500 "no certificate for this name";
    PT06 500 "the certificate could not be loaded";
    PT07 500 "the TLS client hello could not be read";
    PT08 500 "the TLS connection broke";
    PT09 500 "the TLS session could not be resumed";
}

impl std::fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl ErrorCode {
    /// Whether the response tells the client when to come back (`Retry-After`).
    pub fn retry_after(self) -> bool {
        matches!(self, Self::PR01 | Self::PR03 | Self::PR04)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_follow_the_table_of_http_13() {
        for code in ErrorCode::ALL {
            let status = code.status();
            let expected = match code.as_str() {
                "PA01" => 413,
                "PA02" | "PA03" | "PA04" | "PA05" | "PR02" => 502,
                "PR01" | "PR03" | "PR04" => 503,
                "PC05" | "PM03" => 504,
                name if name.starts_with("PC") || name.starts_with("PU") => 502,
                name if name.starts_with("PM") || name.starts_with("PL") => 503,
                _ => continue,
            };
            assert_eq!(status, expected, "{code}");
        }
    }
}
